"""ggml's graph allocator (ggml-alloc.c): how large a buffer grows as values come and go. Pure.

First `lifetimes` decides, once a graph, which value takes room, which overwrites another, and when room is given
back: none of that depends on addresses. Then `Player` plays these events on a `Heap`: best fit among free blocks, the
last block only when no other fits, neighbours merged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from launcher.plan.memory.graph.values import Value

ALIGNMENT = 32
"""Of the CPU backend's buffers (ggml-backend.cpp TENSOR_ALIGNMENT)."""
ENDLESS = 1 << 62
Event = tuple[int, int]
"""A slot and bytes: positive to allocate, negative to free."""
Block = tuple[int, int]
"""Offset and size of free bytes."""
Blocks = tuple[Block, ...]


def aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Heap:
    """The state of one buffer: free blocks (offset, size) by offset, and the end of what was ever allocated."""

    def __init__(self) -> None:
        """An endless free heap."""
        self.free: list[Block] = [(0, ENDLESS)]
        self.peak = 0

    def allocate(self, size: int) -> int:
        """The offset of `size` aligned bytes (ggml_dyn_tallocr_alloc)."""
        free, best, smallest = self.free, -1, ENDLESS
        for i, (_, room) in enumerate(free):
            if size <= room <= smallest:
                best, smallest = i, room
        offset, room = free[best]
        if room == size:
            del free[best]
        else:
            free[best] = (offset + size, room - size)
        self.peak = max(self.peak, offset + size)
        return offset

    def release(self, offset: int, size: int) -> None:
        """Give back `size` aligned bytes at `offset`, and merge (ggml_dyn_tallocr_free_bytes)."""
        free, end = self.free, offset + size
        at = bisect_left(free, (offset, 0))
        if at and sum(free[at - 1]) == offset:
            at -= 1
            offset, size = free[at][0], free[at][1] + size
            del free[at]
        if at < len(free) and free[at][0] == end:
            size += free[at][1]
            del free[at]
        free.insert(at, (offset, size))


class Segment(NamedTuple):
    """A stretch of a graph: its events, and the slots alive before and after it, in the order of their values."""

    events: tuple[Event, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def lifetimes(nodes: Sequence[Value], inputs: Sequence[Value], bounds: Sequence[int]) -> list[Segment]:
    """`nodes` between `bounds` (indices, ascending) as ggml_gallocr_alloc_graph_impl places and frees them.

    `inputs` have slots 0, 1 and so on, and are allocated before the first event. A value keeps its slot as its own;
    one that overwrites another takes over its slot.
    """
    for slot, value in enumerate(inputs):
        value.slot, value.owned = slot, True
    for node in nodes:
        if node.root is not None:
            node.root.views += 1
        for source in node.sources:
            source.children += 1
    alive: dict[Value, int] = {}
    slot, start = len(inputs), 0
    found: list[Segment] = []
    before: tuple[int, ...] = ()
    for end in bounds:
        events: list[Event] = []
        for node in nodes[start:end]:
            if node.role == "room" and node.size:
                slot = _place(node, slot, alive, events)
            for source in node.sources:
                source.children -= 1
                if not source.children and not source.views:
                    _drop(source, alive, events)
        after = tuple(alive.values())
        found.append(Segment(tuple(events), before, after))
        start, before = end, after
    return found


def _place(node: Value, slot: int, alive: dict[Value, int], events: list[Event]) -> int:
    """Give `node` the room of a source, or slot `slot`; the next slot that is not taken."""
    node.owned = True
    if node.inplace:
        for source in node.sources:
            alone = source.children == 1 and not source.views
            if source.owned and alone and not source.output and _same_layout(source, node):
                source.owned, node.slot = False, source.slot
                alive.pop(source, None)
                alive[node] = node.slot
                return slot
    node.slot = alive[node] = slot
    events.append((slot, aligned(node.size)))
    return slot + 1


def _same_layout(a: Value, b: Value) -> bool:
    """Whether one may overwrite the other: equal type and shape, and values that own their room are contiguous."""
    return a.shape == b.shape and a.kind == b.kind


def _drop(value: Value, alive: dict[Value, int], events: list[Event]) -> None:
    """Free a value that nothing needs any more, or what it is the last view of."""
    if value.root is not None:
        value = value.root
        value.views -= 1
        if value.views or value.children:
            return
    if value.owned and not value.output:
        value.owned = False
        alive.pop(value, None)
        events.append((value.slot, -aligned(value.size)))


class Player:
    """Plays segments on a heap; what the same segment did to the same heap before is remembered."""

    def __init__(self, inputs: Sequence[Value]) -> None:
        """A heap that holds the inputs."""
        self._heap = Heap()
        self._inputs = [self._heap.allocate(aligned(value.size)) for value in inputs]
        self._alive: tuple[int, ...] = ()
        self._known: dict[tuple[int, Blocks, tuple[int, ...]], tuple[Blocks, tuple[int, ...], int]] = {}

    @property
    def peak(self) -> int:
        """Bytes reached so far."""
        return self._heap.peak

    def play(self, number: int, segment: Segment) -> None:
        """Go through `segment`, whose `number` says which it is."""
        key = (number, tuple(self._heap.free), self._alive)
        if key in self._known:
            self._heap.free, self._alive = list(self._known[key][0]), self._known[key][1]
            return
        offsets = dict(enumerate(self._inputs)) | dict(zip(segment.before, self._alive, strict=True))
        for slot, size in segment.events:
            if size > 0:
                offsets[slot] = self._heap.allocate(size)
            else:
                self._heap.release(offsets[slot], -size)
        self._alive = tuple(offsets[slot] for slot in segment.after)
        self._known[key] = (tuple(self._heap.free), self._alive, self.peak)
