"""What a new manifest changes in a running fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.supervise.spec import ProcessSpec


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Names by what a reload does to them, each sorted. `failed` of `started` and `restarted` did not come up."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...] = ()


def needs_restart(old: ProcessSpec, new: ProcessSpec, running_argv: tuple[str, ...] | None) -> bool:
    """Whether the process must be started anew: its command, environment or address changed.

    Timeouts, tiers and roles are ours alone and change in place. `running_argv` None = it does not run.
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
    """What to do on the way from `old` to `new`, where `running` gives the argv of what runs.

    With `names`, only these are touched (restarted even if unchanged); else everything that changed. Only what runs
    is restarted, and only boot processes are started, but none that an operator stopped (`held`) and that `names`
    does not name. The builtin front is nobody's process.
    """
    chosen = set(names)
    started: list[str] = []
    stopped: list[str] = []
    restarted: list[str] = []
    kept: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if any(spec is not None and spec.builtin for spec in (before, after)):
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
