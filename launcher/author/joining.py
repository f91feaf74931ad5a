"""How one more server joins a fleet that a file has already, so that all of it fits. Pure.

The rules are those of `choice`, with what a person wrote left as it is: beside the others where that leaves a useful
context, else in turns with as few as need be, else with a short context, else with layers in RAM, else on demand.
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
"""More servers than that are not asked to take turns for one."""
ON_DEMAND = CONTEXTS[-2]
"""Tokens a slot of a server for which there is no room now."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A server that the file has: its bytes where models go, and its exclusive group. `shares`: it may be asked to."""

    name: str
    bytes: int
    group: str = ""
    shares: bool = False


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to take a server in. `mates`: with whom it takes turns; `drawn`: those of them that took none before."""

    choice: ServerChoice
    mates: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    whole: bool = True
    """All of its layers have room on the cards, where there are any."""


class _Company(NamedTuple):
    """With whom a server could take turns, and the bytes that are then free for it. No group: beside all of them.

    `beside`: what is free beside all of them.
    """

    group: str
    drawn: tuple[str, ...]
    mates: tuple[str, ...]
    free: int
    beside: int


def ways(
    candidate: ServerCandidate,
    neighbours: Sequence[Neighbour],
    memory: MemoryBudget,
    needs: Needs,
    mates: Sequence[str] = (),
) -> Iterator[Way]:
    """Every way that the sizes allow, the best first; the last needs memory that is not free now.

    `memory`: all that the fleet may use, `ram` beside cards without what its servers take there. `mates`: with these it
    takes turns, and there is no other way.
    """
    companies = [_named(neighbours, memory.pool, mates)] if mates else list(_companies(neighbours, memory.pool))
    if candidate.kind != "chat" and not mates:  # rather in RAM than a swap for each text
        yield from _whole(candidate, companies[0], CONTEXTS, needs)
        if memory.cards:
            yield from _partly(candidate, companies[0], memory.ram, needs)
    long = [c for c in CONTEXTS if c >= CONTEXT_TOGETHER]
    for contexts in (long, [c for c in CONTEXTS if c < CONTEXT_TOGETHER]):
        for company in companies:
            yield from _whole(candidate, company, contexts, needs)
    for company in sorted(companies if memory.cards else (), key=lambda company: not company.group):
        yield from _partly(candidate, company, memory.ram, needs)
    if mates:
        return
    tokens = tokens_for(candidate, ON_DEMAND)
    size, free = needs(candidate, tokens), max(0, companies[0].free)
    why = f"{gib(size)}, on demand: {gib(free)} are left beside the others"
    yield Way(choice=chosen_as(candidate, tokens, size, why, "warm"))


def room(neighbours: Sequence[Neighbour], memory: MemoryBudget) -> int:
    """The most bytes that the fleet can leave for one more server, with nothing changed that a person wrote."""
    return max(company.free for company in _companies(neighbours, memory.pool))


def would_make_room(neighbours: Sequence[Neighbour], memory: MemoryBudget, size: int) -> str | None:
    """The smallest server that would make room for `size` bytes if it took turns with it, too, whatever is written."""
    each = sorted(neighbours, key=lambda n: (n.bytes, n.name))
    return next((n.name for n in each if _named(neighbours, memory.pool, (n.name,)).free >= size), None)


def _companies(neighbours: Sequence[Neighbour], pool: int) -> Iterator[_Company]:
    """Nobody first; then each group as it is, the largest first; then with more and more of those that take no turns.

    Of those the largest are asked first: the fewer have to.
    """
    yield _company("", (), neighbours, pool)
    largest = sorted((n for n in neighbours if n.group), key=lambda n: (-n.bytes, n.name))
    groups = list(dict.fromkeys(n.group for n in largest))
    for group in groups:
        yield _company(group, (), neighbours, pool)
    group = next(iter(groups), TURNS)
    alone = sorted((n for n in neighbours if n.shares and not n.group), key=lambda n: (-n.bytes, n.name))
    for count in range(1, min(len(alone), DRAWN_MAX) + 1):
        yield _company(group, alone[:count], neighbours, pool)


def _named(neighbours: Sequence[Neighbour], pool: int, names: Sequence[str]) -> _Company:
    """The group of the first of `names`, or a new one, with all of them."""
    named = [n for n in neighbours if n.name in names]
    group = next((n.group for n in named if n.group), TURNS)
    return _company(group, [n for n in named if n.group != group], neighbours, pool)


def _company(group: str, drawn: Sequence[Neighbour], neighbours: Sequence[Neighbour], pool: int) -> _Company:
    """A group with those that are drawn into it: free is what the others leave."""
    members = [n for n in neighbours if group and n.group == group and n not in drawn]
    others = [n for n in neighbours if n not in drawn and n not in members]
    free, beside = pool - taken(others), pool - taken(neighbours)
    names = tuple(n.name for n in drawn)
    return _Company(group, names, (*(n.name for n in members), *names), free, beside)


def taken(neighbours: Sequence[Neighbour]) -> int:
    """Bytes of all that may be up at once: one of each group."""
    groups: dict[str, int] = {}
    for neighbour in neighbours:
        if neighbour.group:
            groups[neighbour.group] = max(groups.get(neighbour.group, 0), neighbour.bytes)
    return sum(groups.values()) + sum(n.bytes for n in neighbours if not n.group)


def _whole(candidate: ServerCandidate, company: _Company, contexts: Sequence[int], needs: Needs) -> Iterator[Way]:
    """Each of `contexts` with which all of it has room in that company."""
    for tokens in steps(candidate, contexts):
        size = needs(candidate, tokens)
        if size <= company.free:
            yield _way(candidate, company, tokens, size)


def _partly(candidate: ServerCandidate, company: _Company, ram: int, needs: Needs) -> Iterator[Way]:
    """Each context with which the cards have room for some of its layers, and RAM for the rest."""
    for tokens in steps(candidate, [context for context in CONTEXTS if context <= CONTEXT_TOGETHER]):
        size, free = needs(candidate, tokens), max(0, company.free)
        if free < size <= free + ram:
            yield _way(candidate, company, tokens, size, SPILLED)


def _way(candidate: ServerCandidate, company: _Company, tokens: int, size: int, place: str = "") -> Way:
    turn = f"takes turns: {gib(max(0, company.beside))} are left beside the others" if company.group else "always up"
    tier: Literal["hot", "warm"] = "warm" if company.group else "hot"
    choice = chosen_as(candidate, tokens, size, f"{gib(size)}{place}, {turn}", tier, company.group)
    return Way(choice=choice, mates=company.mates, drawn=company.drawn, whole=not place)
