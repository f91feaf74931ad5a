"""Fit one more server into the fleet that a file describes. Pure.

The rules are those of `choice`, and what a person wrote stays as it is: beside the others if that leaves a useful
context, else in turns with as few servers as possible, else with a short context, else with layers in RAM, else on
demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from launcher.author.choice import (
    CONTEXT_TOGETHER,
    CONTEXTS,
    SPILLED,
    TURNS,
    MemoryBudget,
    Needs,
    ServerChoice,
    chosen_as,
    steps,
    tokens_for,
)
from launcher.author.pairing import ServerCandidate
from launcher.sizes import gib

DRAWN_MAX = 8
"""Most servers that are made to take turns for the sake of one."""
ON_DEMAND = CONTEXTS[-2]
"""Tokens per slot of a server for which no memory is free now."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A server in the file: its bytes where models go, its exclusive group. `shares`: may be made to take turns."""

    name: str
    bytes: int
    group: str = ""
    shares: bool = False


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to add a server. `turn_mates`: it takes turns with these; `drawn_in`: of these, took no turns before."""

    choice: ServerChoice
    turn_mates: tuple[str, ...] = ()
    drawn_in: tuple[str, ...] = ()
    whole: bool = True
    """All of its layers fit on the GPUs, if there are any."""


class _Group(NamedTuple):
    """A group that the new server could take turns in ("": none, it runs beside all), and the bytes free for it.

    `beside`: bytes that are free beside all servers.
    """

    group: str
    drawn_in: tuple[str, ...]
    turn_mates: tuple[str, ...]
    free: int
    beside: int


def ways(
    candidate: ServerCandidate,
    neighbours: Sequence[Neighbour],
    memory: MemoryBudget,
    needs: Needs,
    mates: Sequence[str] = (),
) -> Iterator[Way]:
    """Every way to add `candidate` that its size allows, the best first; the last needs memory that is not free now.

    `memory`: all that the fleet may use; beside GPUs, `ram` is what its servers leave. `mates`: it takes turns with
    these, and no other way is tried.
    """
    groups = [_named(neighbours, memory.pool, mates)] if mates else list(_groups_to_join(neighbours, memory.pool))
    if candidate.kind != "chat" and not mates:  # rather in RAM than a swap for each text
        yield from _whole(candidate, groups[0], CONTEXTS, needs)
        if memory.cards:
            yield from _partly(candidate, groups[0], memory.ram, needs)
    long = [c for c in CONTEXTS if c >= CONTEXT_TOGETHER]
    for contexts in (long, [c for c in CONTEXTS if c < CONTEXT_TOGETHER]):
        for turns in groups:
            yield from _whole(candidate, turns, contexts, needs)
    for turns in sorted(groups if memory.cards else (), key=lambda turns: not turns.group):
        yield from _partly(candidate, turns, memory.ram, needs)
    if mates:
        return
    tokens = tokens_for(candidate, ON_DEMAND)
    size, free = needs(candidate, tokens), max(0, groups[0].free)
    why = f"{gib(size)}, on demand: {gib(free)} are left beside the others"
    yield Way(choice=chosen_as(candidate, tokens, size, why, "warm"))


def room(neighbours: Sequence[Neighbour], memory: MemoryBudget) -> int:
    """The most bytes that the fleet can leave for one more server without a change of what a person wrote."""
    return max(turns.free for turns in _groups_to_join(neighbours, memory.pool))


def would_make_room(neighbours: Sequence[Neighbour], memory: MemoryBudget, size: int) -> str | None:
    """The smallest server that would make room for `size` bytes by taking turns, whatever its entry says."""
    each = sorted(neighbours, key=lambda n: (n.bytes, n.name))
    return next((n.name for n in each if _named(neighbours, memory.pool, (n.name,)).free >= size), None)


def _groups_to_join(neighbours: Sequence[Neighbour], pool: int) -> Iterator[_Group]:
    """No group; then each present group, the one of the largest server first; then with more and more servers drawn in.

    The largest servers are drawn in first, so that fewer have to be.
    """
    yield _group("", (), neighbours, pool)
    largest = sorted((n for n in neighbours if n.group), key=lambda n: (-n.bytes, n.name))
    groups = list(dict.fromkeys(n.group for n in largest))
    for group in groups:
        yield _group(group, (), neighbours, pool)
    group = next(iter(groups), TURNS)
    alone = sorted((n for n in neighbours if n.shares and not n.group), key=lambda n: (-n.bytes, n.name))
    for count in range(1, min(len(alone), DRAWN_MAX) + 1):
        yield _group(group, alone[:count], neighbours, pool)


def _named(neighbours: Sequence[Neighbour], pool: int, names: Sequence[str]) -> _Group:
    """The group of the first of `names` that has one, or a new group, with all of `names` in it."""
    named = [n for n in neighbours if n.name in names]
    group = next((n.group for n in named if n.group), TURNS)
    return _group(group, [n for n in named if n.group != group], neighbours, pool)


def _group(group: str, drawn: Sequence[Neighbour], neighbours: Sequence[Neighbour], pool: int) -> _Group:
    """A group with `drawn` added to it; free is what the servers outside the group leave."""
    members = [n for n in neighbours if group and n.group == group and n not in drawn]
    others = [n for n in neighbours if n not in drawn and n not in members]
    free, beside = pool - taken(others), pool - taken(neighbours)
    names = tuple(n.name for n in drawn)
    return _Group(group, names, (*(n.name for n in members), *names), free, beside)


def taken(neighbours: Sequence[Neighbour]) -> int:
    """Bytes of all servers that may be up at once: of each group the largest."""
    groups: dict[str, int] = {}
    for neighbour in neighbours:
        if neighbour.group:
            groups[neighbour.group] = max(groups.get(neighbour.group, 0), neighbour.bytes)
    return sum(groups.values()) + sum(n.bytes for n in neighbours if not n.group)


def _whole(candidate: ServerCandidate, turns: _Group, contexts: Sequence[int], needs: Needs) -> Iterator[Way]:
    """A way for each of `contexts` with which all layers fit."""
    for tokens in steps(candidate, contexts):
        size = needs(candidate, tokens)
        if size <= turns.free:
            yield _way(candidate, turns, tokens, size)


def _partly(candidate: ServerCandidate, turns: _Group, ram: int, needs: Needs) -> Iterator[Way]:
    """A way for each context with which the GPUs hold some of the layers, and RAM the rest."""
    for tokens in steps(candidate, [context for context in CONTEXTS if context <= CONTEXT_TOGETHER]):
        size, free = needs(candidate, tokens), max(0, turns.free)
        if free < size <= free + ram:
            yield _way(candidate, turns, tokens, size, SPILLED)


def _way(candidate: ServerCandidate, turns: _Group, tokens: int, size: int, place: str = "") -> Way:
    turn = f"takes turns: {gib(max(0, turns.beside))} are left beside the others" if turns.group else "always up"
    tier: Literal["hot", "warm"] = "warm" if turns.group else "hot"
    choice = chosen_as(candidate, tokens, size, f"{gib(size)}{place}, {turn}", tier, turns.group)
    return Way(choice=choice, turn_mates=turns.turn_mates, drawn_in=turns.drawn_in, whole=not place)
