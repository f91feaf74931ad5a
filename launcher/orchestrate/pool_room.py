"""Which files the warm pool keeps: a pure decision over bytes and times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec


class HeldFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A model's files in the pool. `kept`: a server runs on them, or somebody pinned them: they never go.

    `size_bytes` counts against the budget; what is planned with a running server counts 0.
    """

    size_bytes: int
    last_used: float
    kept: bool = False


class Moves(msgspec.Struct, frozen=True):
    """Files to drop, then files to load, in order."""

    drop: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


class PoolLimits(msgspec.Struct, frozen=True):
    """Of the pool: bytes in all, and models besides those that are kept."""

    budget_bytes: int
    models_max: int

    def hold(self, held: Mapping[str, HeldFiles]) -> bool:
        """Whether `held` is within both."""
        spare = sum(1 for h in held.values() if not h.kept)
        return sum(h.size_bytes for h in held.values()) <= self.budget_bytes and spare <= self.models_max


def pool_moves(
    predicted: Iterable[str],
    others: Iterable[str],
    sizes: Mapping[str, int],
    held: Mapping[str, HeldFiles],
    limits: PoolLimits,
) -> Moves:
    """The changes from `held` to what should be there: `predicted`, likeliest first, then `others` while room is free.

    For predicted files the least recently used are dropped, never those that are kept or predicted before them, and
    none in vain; for the others nothing is dropped. What exceeds the limits (they shrank) is dropped in the same order.
    """
    wishes = tuple(dict.fromkeys(name for name in predicted if name in sizes))
    stay = dict(held)
    for name in _eviction_order(stay, wishes):
        if limits.hold(stay):
            break
        del stay[name]
    load: list[str] = []
    for position, name in enumerate(wishes):
        if name in stay or name in held:  # one that is about to go is not loaded again at once
            continue
        after = _with(name, sizes[name], stay, wishes[:position], limits)
        if after is not None:
            stay = after
            load.append(name)
    for name in dict.fromkeys(others):
        if name in sizes and name not in stay and name not in held:
            after = {**stay, name: _new(sizes[name])}
            if limits.hold(after):
                stay = after
                load.append(name)
    return Moves(tuple(name for name in held if name not in stay), tuple(load))


def _with(
    name: str, size: int, held: Mapping[str, HeldFiles], before: tuple[str, ...], limits: PoolLimits
) -> dict[str, HeldFiles] | None:
    """`held` with `name`, without those that must be dropped for it; None when it does not fit."""
    stay = {**held, name: _new(size)}
    going: list[str] = []
    for other in _eviction_order(held, before):
        if limits.hold(stay):
            break
        if other not in before:
            del stay[other]
            going.append(other)
    if not limits.hold(stay):
        return None
    for other in reversed(going):  # a big one that went late may have been enough
        spared = {**stay, other: held[other]}
        if limits.hold(spared):
            stay = spared
    return stay


def _eviction_order(held: Mapping[str, HeldFiles], wishes: tuple[str, ...]) -> list[str]:
    """Names that may be dropped, in order: least recently used first, then those in `wishes`, the likeliest last."""
    rank = {name: len(wishes) - position for position, name in enumerate(wishes)}
    free = (name for name, h in held.items() if not h.kept)
    return sorted(free, key=lambda name: (rank.get(name, 0), held[name].last_used, name))


def _new(size: int) -> HeldFiles:
    """Files that are about to be loaded: the most recently used."""
    return HeldFiles(size_bytes=size, last_used=float("inf"))
