"""The best combination that fits, found by keeping only undominated partial choices. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Vector = tuple[int, ...]
"""Bytes per device."""


class Candidate(NamedTuple):
    """One option of one server: its cost, and its bytes on each device."""

    cost: int
    size: Vector


class State(NamedTuple):
    """Options chosen so far, one per server in order: sum of costs, sizes."""

    total: int
    picks: tuple[int, ...]
    size: Vector


LIMIT = 128
"""Partial choices kept for three devices and more; for one and two there is no limit."""


class Best(NamedTuple):
    """The option of each server; None where nothing fits. `complete` False: more was dropped than dominated states."""

    picks: tuple[int, ...] | None
    complete: bool


def best(groups: Sequence[Sequence[Sequence[Candidate]]], room: Vector) -> Best:
    """The options with the least sum of costs within `room`.

    `groups`: servers that take turns, so that a group takes as much as its largest member; groups add up. Of equal sums
    the one with the fewest bytes, then the one whose first server has the better option. Every combination is
    considered: a dropped state takes no less on any device, and costs no less, than one that is kept, whatever follows;
    or leaves less than the remaining servers need at least. For three devices and more only the `LIMIT` best partial
    choices go on, and the smallest.
    """
    nothing = State(0, (), (0,) * len(room))
    states, complete = [nothing], True
    least = [_least(group) for group in groups]
    for at, group in enumerate(groups):
        free = tuple(r - sum(later) for r, *later in zip(room, *least[at + 1 :], strict=True))
        members = [nothing]
        for options in group:
            members, whole = undominated(
                State(s.total + o.cost, (*s.picks, i), tuple(map(max, s.size, o.size)))
                for s in members
                for i, o in enumerate(options)
                if within(o.size, free)
            )
            complete = complete and whole
        states, whole = undominated(
            State(s.total + m.total, s.picks + m.picks, size)
            for s in states
            for m in members
            if within(size := tuple(map(sum, zip(s.size, m.size, strict=True))), free)
        )
        complete = complete and whole
    return Best(min(states, key=_worth).picks if states else None, complete)


def _least(group: Sequence[Sequence[Candidate]]) -> Vector:
    members = [tuple(map(min, zip(*(option.size for option in options), strict=True))) for options in group]
    return tuple(map(max, zip(*members, strict=True)))


def undominated(states: Iterable[State]) -> tuple[list[State], bool]:
    """`states` without the dominated ones (cost no lower, and nowhere smaller); and whether only those were dropped."""
    ordered = sorted(states, key=_worth)
    if not ordered:
        return [], True
    seen: Callable[[Vector], bool] = _Staircase() if len(ordered[0].size) == 2 else _Sizes()
    kept: list[State] = []
    for state in ordered:
        if seen(state.size):
            continue
        if len(kept) >= LIMIT and len(state.size) > 2:
            return [*kept, min(ordered, key=lambda s: (sum(s.size), _worth(s)))], False
        kept.append(state)
    return kept, True


class _Sizes:
    """Sizes so far; tells for each new one whether an earlier one is nowhere larger."""

    def __init__(self) -> None:
        self._least: list[Vector] = []

    def __call__(self, size: Vector) -> bool:
        if any(within(other, size) for other in self._least):
            return True
        self._least = [other for other in self._least if not within(size, other)]
        self._least.append(size)
        return False


class _Staircase:
    """`_Sizes` for two devices: undominated sizes fall on the second as they rise on the first."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._second: list[int] = []

    def __call__(self, size: Vector) -> bool:
        first, second = size
        at = bisect_right(self._first, first)
        if at and self._second[at - 1] <= second:
            return True
        end = at
        while end < len(self._second) and self._second[end] >= second:
            end += 1
        begin = at - 1 if at and self._first[at - 1] == first else at
        self._first[begin:end], self._second[begin:end] = [first], [second]
        return False


def _worth(state: State) -> tuple[int, int, tuple[int, ...]]:
    return state.total, sum(state.size), state.picks


def within(size: Vector, room: Vector) -> bool:
    """Whether `size` exceeds `room` on no device."""
    return all(a <= b for a, b in zip(size, room, strict=True))
