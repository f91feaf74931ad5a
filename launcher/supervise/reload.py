"""What a new manifest changes in a running fleet, and in which order: one replica always serves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from launcher.base.addresses import port_or_path
from launcher.supervise.spec import ProcessSpec


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Names by what a reload does to them, each sorted. `failed`: of `started` and `restarted`, those not ready."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...] = ()


def needs_restart(old: ProcessSpec, new: ProcessSpec, running_argv: tuple[str, ...] | None) -> bool:
    """Whether the process must be restarted: its command line, environment or address has changed.

    Timeouts, tiers and roles concern the runtime alone and change in place. `running_argv` None: it does not run.
    """
    if running_argv is not None and running_argv != new.unit.argv:
        return True
    was, becomes = old.unit, new.unit
    return (was.argv, was.env, was.host, was.port) != (becomes.argv, becomes.env, becomes.host, becomes.port)


def compare_specs(
    old: Mapping[str, ProcessSpec],
    new: Mapping[str, ProcessSpec],
    running: Mapping[str, tuple[str, ...]],
    names: tuple[str, ...],
    held: frozenset[str] = frozenset(),
) -> Changes:
    """The changes on the way from `old` to `new`; `running`: command lines of the running processes.

    With `names`, only these are touched (restarted even if unchanged); otherwise everything that changed. Only running
    processes are restarted, and only boot processes are started, but none that an operator stopped (`held`) unless
    `names` has it. The builtin front is no process.
    """
    chosen = set(names)
    started: list[str] = []
    stopped: list[str] = []
    restarted: list[str] = []
    kept: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if any(spec is not None and spec.unit.builtin for spec in (before, after)):
            continue
        touched = not chosen or name in chosen
        if after is None or after.unit.start == "never":
            (stopped if touched and before is not None else kept).append(name)
        elif name not in running:
            boot = after.unit.start == "boot" and (after.unit.exclusive is None or before is None) and name not in held
            (started if touched and (name in chosen or boot) else kept).append(name)
        elif touched and (name in chosen or before is None or needs_restart(before, after, running[name])):
            restarted.append(name)
        else:
            kept.append(name)
    return Changes(started=tuple(started), stopped=tuple(stopped), restarted=tuple(restarted), kept=tuple(kept))


def waves(
    restarted: Iterable[str], old: Mapping[str, ProcessSpec], new: Mapping[str, ProcessSpec]
) -> tuple[tuple[str, ...], ...]:
    """The names of `restarted` in waves: each is stopped and ready again before the next one is touched.

    Replicas are servers that share a role, or a model, both before and after; a wave has at most one of them. A server
    whose address changes is in the first wave in any case: the routes already lead to its new address. Everything is
    one wave where one needs an address that another still holds. Each name comes once; there is no empty wave.
    """
    names = sorted(restarted)
    if _addresses_meet(names, old, new):
        return (tuple(names),) if names else ()
    rounds: list[list[str]] = []
    for name in names:
        moves = name not in old or (old[name].unit.host, old[name].unit.port) != (
            new[name].unit.host,
            new[name].unit.port,
        )
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
    """Whether two servers are replicas of each other, before and after."""
    if one not in old or other not in old:
        return False
    return _alike(old[one], old[other]) and _alike(new[one], new[other])


def _alike(one: ProcessSpec, other: ProcessSpec) -> bool:
    """Whether both are servers that share a role or a model."""
    if (one.unit.kind, other.unit.kind) != ("server", "server"):
        return False
    return bool(set(one.unit.roles) & set(other.unit.roles)) or (one.unit.model == other.unit.model != "")


def _addresses_meet(names: list[str], old: Mapping[str, ProcessSpec], new: Mapping[str, ProcessSpec]) -> bool:
    """Whether one of `names` gets a port, or a unix socket's path, that another of them has now."""
    held = {_place(old[name]): name for name in names if name in old}
    return any(held.get(_place(new[name]), name) != name for name in names)


def _place(spec: ProcessSpec) -> str:
    """The part of its address that no other process can have: the port, or the path."""
    return port_or_path(spec.unit.host, spec.unit.port)
