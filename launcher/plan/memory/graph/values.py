"""Values of a compute graph and the operations that make them, as ggml orders and sizes them. Pure.

Only what decides memory is kept: bytes, shape, sources, what a value is a view of, and whether its operation may
overwrite a source. Weights and caches have buffers of their own: they are no sources here, only shapes.
"""

from __future__ import annotations

from math import prod
from typing import Literal

Shape = tuple[int, int, int, int]
"""Elements by dimension, the row first (`ggml_tensor.ne`)."""
Role = Literal["input", "room", "view", "store"]
"""Set from outside; in room of its own; other bytes shown; written into a cache, which is no part of the buffer."""
BYTES = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}


class Value:
    """A tensor that the graph allocator sees.

    `root` is the value whose bytes a view shows. An `output` is never overwritten nor freed.
    `children`, `views`, `owned` and `slot` belong to `allocator.lifetimes`.
    """

    __slots__ = (
        *("children", "inplace", "kind", "output", "owned", "role", "root"),
        *("seen", "shape", "size", "slot", "sources", "views"),
    )

    def __init__(
        self,
        shape: Shape,
        kind: str,
        sources: tuple[Value, ...],
        *,
        role: Role = "room",
        inplace: bool = False,
        root: Value | None = None,
    ) -> None:
        """A value not yet in a graph."""
        self.shape, self.kind, self.sources, self.role = shape, kind, sources, role
        self.inplace, self.root = inplace, root
        self.size = prod(shape) * BYTES[kind]
        self.seen = self.output = self.owned = False
        self.children = self.views = 0
        self.slot = -1


class Graph:
    """Nodes in the order of evaluation, and inputs in the order in which they are met (ggml.c ggml_visit_parents)."""

    def __init__(self) -> None:
        """An empty graph."""
        self.nodes: list[Value] = []
        self.inputs: list[Value] = []

    def input(self, *shape: int, kind: str = "i32") -> Value:
        """A value that is set before each evaluation."""
        return Value(_four(shape), kind, (), role="input")

    def new(self, shape: tuple[int, ...], *sources: Value, kind: str = "f32") -> Value:
        """The result of an operation that needs room of its own."""
        return Value(_four(shape), kind, sources)

    def over(self, *sources: Value) -> Value:
        """The result of an operation that may overwrite a source of the same layout (ggml_op_can_inplace)."""
        return Value(sources[0].shape, "f32", sources, inplace=True)

    def view(self, value: Value, *shape: int) -> Value:
        """The same bytes in another shape: reshape, view, permute, transpose."""
        return Value(_four(shape), value.kind, (value,), role="view", root=value.root or value)

    def matmul(self, rows: int, x: Value) -> Value:
        """A weight of `rows` rows times `x`."""
        return Value((rows, *x.shape[1:]), "f32", (x,))

    def store(self, *sources: Value) -> None:
        """Write into a cache, now."""
        self.expand(Value((0, 1, 1, 1), "f32", sources, role="store"))

    def expand(self, value: Value) -> None:
        """Append `value` after all that it needs and that is not there yet (ggml_build_forward_expand)."""
        if value.seen:
            return
        value.seen = True
        for source in value.sources:
            if not source.seen:
                self.expand(source)
        (self.inputs if value.role == "input" else self.nodes).append(value)


def _four(shape: tuple[int, ...]) -> Shape:
    """`shape` with ones up to four dimensions."""
    a, b, c, d, *_ = (*shape, 1, 1, 1)
    return (a, b, c, d)
