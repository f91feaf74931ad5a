"""In which order a reload restarts: replicas one after the other, so that one of them always serves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launcher.base.addresses import place
from launcher.supervise.spec import ProcessSpec


def waves(
    restarted: Iterable[str], old: Mapping[str, ProcessSpec], new: Mapping[str, ProcessSpec]
) -> tuple[tuple[str, ...], ...]:
    """The names of `restarted` in waves: each is stopped and ready again before the next one is touched.

    Replicas are servers that share a role, or a model, both before and after; a wave has at most one of them. One
    whose address changes goes first whatever it is: the routes lead to its new address already. So does everything
    where an address is wanted that another one still holds. Each name comes once; there is no empty wave.
    """
    names = sorted(restarted)
    if _addresses_meet(names, old, new):
        return (tuple(names),) if names else ()
    rounds: list[list[str]] = []
    for name in names:
        moves = name not in old or _address(old[name]) != _address(new[name])
        at = 0
        while not moves and at < len(rounds) and any(_replicas(name, other, old, new) for other in rounds[at]):
            at += 1
        if at == len(rounds):
            rounds.append([])
        rounds[at].append(name)
    return tuple(tuple(wave) for wave in rounds)


def replicas_of(name: str, others: Iterable[str], specs: Mapping[str, ProcessSpec]) -> tuple[str, ...]:
    """Those of `others` that are replicas of `name`."""
    return tuple(other for other in others if other != name and _alike(specs[name], specs[other]))


def _replicas(one: str, other: str, old: Mapping[str, ProcessSpec], new: Mapping[str, ProcessSpec]) -> bool:
    """Whether two servers stand in for each other, before and after."""
    if one not in old or other not in old:
        return False
    return _alike(old[one], old[other]) and _alike(new[one], new[other])


def _alike(one: ProcessSpec, other: ProcessSpec) -> bool:
    """Whether requests for one name may go to either."""
    if one.kind != "server" or other.kind != "server":
        return False
    return bool(set(one.unit.roles) & set(other.unit.roles)) or (one.unit.model == other.unit.model != "")


def _addresses_meet(names: list[str], old: Mapping[str, ProcessSpec], new: Mapping[str, ProcessSpec]) -> bool:
    """Whether one of `names` gets a port, or a unix socket's path, that another of them has now."""
    held = {_place(old[name]): name for name in names if name in old}
    return any(held.get(_place(new[name]), name) != name for name in names)


def _place(spec: ProcessSpec) -> str:
    """What of its address another cannot have: the port, or the path."""
    return place(spec.unit.host, spec.unit.port)


def _address(spec: ProcessSpec) -> tuple[str, int]:
    """Where it listens."""
    return spec.unit.host, spec.unit.port
