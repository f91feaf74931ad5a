"""What a graph is built for: micro-batch, caches, a layer's weights; and what its layers share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from launcher.ir.config import ArchitectureConfig, KvType
from launcher.plan.memory.graph.values import Graph, Value

Weights = Mapping[str, tuple[int, ...]]
"""Names within a layer (or of the model) → shapes, the row first."""


class NotSimulatedError(Exception):
    """The graph has something that is not described here; the text says what."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """One K/V cache: cells of a stream, and the widest V row of its layers."""

    cells: int
    v_width: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A micro-batch as llama_context::graph_reserve makes it, and what of the context shapes the graph.

    `sequences` divide `tokens` evenly. `full` and `sliding` are None where no layer attends so.
    """

    tokens: int
    sequences: int
    outputs: int
    streams: int
    flash_attention: bool
    k_kind: KvType
    v_kind: KvType
    full: Cache | None
    sliding: Cache | None
    experts_used: int
    pooling: str = ""
    """How embeddings are pooled; empty for a server that completes."""
    offloaded: bool = False
    """Every layer is on one device: the host looks up the embeddings, and inputs are copied over."""

    @property
    def sequence_tokens(self) -> int:
        """Tokens of one sequence."""
        return self.tokens // self.sequences


class Build:
    """A graph under construction."""

    def __init__(self, arch: ArchitectureConfig, batch: Batch) -> None:
        """Nothing built yet."""
        self.arch, self.batch, self.graph = arch, batch, Graph()
        self._once: dict[str, Value] = {}

    def once(self, name: str, make: Callable[[], Value]) -> Value:
        """A value that many layers use, made by the first."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]

    def shared(self, name: str, *shape: int, kind: str = "i32") -> Value:
        """An input that many layers use."""
        return self.once(name, lambda: self.graph.input(*shape, kind=kind))

    def norm(self, x: Value, *, bias: bool = False) -> Value:
        """RMS norm times a weight, and a bias (build_norm)."""
        normed = self.graph.over(self.graph.over(x))
        return self.graph.over(normed) if bias else normed

    def layer_norm(self, x: Value) -> Value:
        """Mean and variance norm with weight and bias: its first operation cannot overwrite."""
        return self.graph.over(self.graph.over(self.graph.new(x.shape, x)))

    def linear(self, weights: Weights, name: str, x: Value) -> Value:
        """A matrix, and its bias where there is one."""
        product = self.graph.matmul(need(weights, f"{name}.weight")[1], x)
        return self.graph.over(product) if f"{name}.bias" in weights else product

    def wanted_rows(self, *values: Value) -> tuple[Value, ...]:
        """Only the rows that are asked for, of each value (`inp_out_ids`)."""
        ids = self.shared("out_ids", self.batch.outputs)
        return tuple(self.graph.new((v.shape[0], self.batch.outputs), v, ids) for v in values)


def need(weights: Weights, name: str) -> tuple[int, ...]:
    """The shape of a weight without which the graph cannot be built. Raises NotSimulatedError."""
    shape = weights.get(name)
    if shape is None:
        raise NotSimulatedError(f"no {name}")
    return shape
