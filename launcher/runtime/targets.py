"""Targets while a fleet runs: what was measured last, whether it is met, as status and as metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from launcher.ir.fleet import TargetUnit
from launcher.ir.live import ProcessStatus, TargetStatus

AT_MOST = frozenset({"swap_seconds"})
"""Targets that are limits from above; the others are from below."""


def targets_now(
    targets: Iterable[TargetUnit] | msgspec.UnsetType, processes: Iterable[ProcessStatus], swap_s: float | None
) -> tuple[TargetStatus, ...]:
    """Every target with its last measurement. `swap_s`: seconds of the last swap."""
    if isinstance(targets, msgspec.UnsetType):
        return ()
    speeds = {p.name: p.tokens_per_second for p in processes}
    return tuple(_now(target, swap_s, speeds) for target in targets)


def _now(target: TargetUnit, swap_s: float | None, speeds: Mapping[str, float | None]) -> TargetStatus:
    """One target."""
    measured = swap_s if target.name == "swap_seconds" else speeds.get(target.server)
    met = None
    if measured is not None:
        met = measured <= target.limit if target.name in AT_MOST else measured >= target.limit
    return TargetStatus(name=target.name, server=target.server, limit=target.limit, measured=measured, met=met)


def bounds(targets: Iterable[TargetUnit] | msgspec.UnsetType) -> tuple[float, ...]:
    """Limits in seconds: each is to be a bucket of its histogram."""
    if isinstance(targets, msgspec.UnsetType):
        return ()
    return tuple(target.limit for target in targets if target.name == "swap_seconds")


def samples(now: Iterable[TargetStatus], what: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and values of one metric: `limit`, `measured` or `met`; nothing where nothing was measured."""
    for target in now:
        value = getattr(target, what)
        if value is not None:
            yield {"target": target.name, "server": target.server}, float(value)
