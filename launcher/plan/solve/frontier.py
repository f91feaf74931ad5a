"""The best of all combinations that fit, found by keeping what no other beats. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Vector = tuple[int, ...]
"""Bytes by device."""


class Candidate(NamedTuple):
    """One option of one server: what it costs, and takes on each device."""

    cost: int
    size: Vector


class State(NamedTuple):
    """Options chosen so far, one a server: sum of costs, each cost and each option in order, sizes."""

    total: int
    costs: tuple[int, ...]
    picks: tuple[int, ...]
    size: Vector


def best(groups: Sequence[Sequence[Sequence[Candidate]]], room: Vector) -> tuple[int, ...] | None:
    """The option of each server that gives the least sum of costs within `room`; None where nothing fits.

    `groups`: servers that take turns, so that a group takes as much as its largest member; groups add up. Of equal
    sums the costs of servers listed first decide, then their options. Every combination is considered: what is left
    out takes no less on any device, and is worth no more, than one that is kept, whatever comes later.
    """
    states = [State(0, (), (), (0,) * len(room))]
    for group in groups:
        member_states = [State(0, (), (), (0,) * len(room))]
        for options in group:
            member_states = undominated(
                State(s.total + o.cost, (*s.costs, o.cost), (*s.picks, i), tuple(map(max, s.size, o.size)))
                for s in member_states
                for i, o in enumerate(options)
                if _within(o.size, room)
            )
        states = undominated(
            State(s.total + m.total, s.costs + m.costs, s.picks + m.picks, size)
            for s in states
            for m in member_states
            if _within(size := tuple(map(sum, zip(s.size, m.size, strict=True))), room)
        )
    return min(states, key=_worth).picks if states else None


def undominated(states: Iterable[State]) -> list[State]:
    """`states` without those that another one beats: worth no less, and nowhere larger."""
    kept: list[State] = []
    for state in sorted(states, key=_worth):
        # on one device the last that was kept is the smallest
        rivals = kept[-1:] if len(state.size) == 1 else kept
        if not any(_within(other.size, state.size) for other in rivals):
            kept.append(state)
    return kept


def _worth(state: State) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """What is better comes first."""
    return state.total, state.costs, state.picks


def _within(size: Vector, room: Vector) -> bool:
    """Whether `size` is nowhere above `room`."""
    return all(a <= b for a, b in zip(size, room, strict=True))
