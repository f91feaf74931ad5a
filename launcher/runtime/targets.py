"""Targets while a fleet runs: the last measurements and whether they are met, as status and metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from launcher.ir.events import Happened
from launcher.ir.fleet import TargetUnit
from launcher.ir.live import ProcessStatus, TargetStatus

AT_MOST = frozenset({"swap_seconds", "first_token_seconds"})
"""Targets that are upper limits; the others are lower limits."""


def targets_now(
    targets: Iterable[TargetUnit] | msgspec.UnsetType, processes: Iterable[ProcessStatus], swap_s: float | None
) -> tuple[TargetStatus, ...]:
    """Every target with its last measurement. `swap_s`: seconds of the last swap."""
    if isinstance(targets, msgspec.UnsetType):
        return ()
    known = {p.name: p for p in processes}
    return tuple(_now(target, swap_s, known) for target in targets)


def _now(target: TargetUnit, swap_s: float | None, processes: Mapping[str, ProcessStatus]) -> TargetStatus:
    process = processes.get(target.server)
    measured = swap_s if target.name == "swap_seconds" else None
    if process is not None:
        measured = process.tokens_per_second if target.name == "tokens_per_second" else process.first_token_s
    met = None
    if measured is not None:
        met = measured <= target.limit if target.name in AT_MOST else measured >= target.limit
    return TargetStatus(name=target.name, server=target.server, limit=target.limit, measured=measured, met=met)


def target_events(before: Mapping[tuple[str, str], bool], now: Iterable[TargetStatus]) -> Iterator[Happened]:
    """An event for each target that is missed and was not `before` (by name and server), or is met again."""
    for target in now:
        was = before.get((target.name, target.server), True)
        if target.met is None or target.measured is None or target.met is was:
            continue
        what, most = target.name.replace("_", " "), target.name in AT_MOST
        apart = _shown(abs(target.measured - target.limit))
        far = f"{apart} to spare" if target.met else f"{apart} too much" if most else f"{apart} short"
        wanted = f"at {'most' if most else 'least'} {_shown(target.limit)} wanted"
        yield Happened(
            kind="target",
            name=target.server,
            message=f"{what}: {'met again' if target.met else 'missed'}",
            cause=f"{_shown(target.measured)} measured, {wanted}: {far}",
            details={"target": target.name, "limit": target.limit, "measured": target.measured, "met": target.met},
        )


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def bounds(targets: Iterable[TargetUnit] | msgspec.UnsetType) -> tuple[float, ...]:
    """Limits in seconds that must be buckets of the swap histogram."""
    if isinstance(targets, msgspec.UnsetType):
        return ()
    return tuple(target.limit for target in targets if target.name == "swap_seconds")


def samples(now: Iterable[TargetStatus], what: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and values of one metric: `limit`, `measured` or `met`; none for targets without a measurement."""
    for target in now:
        value = getattr(target, what)
        if value is not None:
            yield {"target": target.name, "server": target.server}, float(value)
