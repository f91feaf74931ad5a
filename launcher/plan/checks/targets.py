"""Targets that the plan shows out of reach already: which, and how far. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, floor

from launcher.errors import Finding, Fix
from launcher.ir.config import FleetConfig
from launcher.ir.plan import ServerPlan
from launcher.ir.speed import ServerSpeed
from launcher.plan.checks.planning import Planning, finding
from launcher.plan.speed import expected, touched

OUT_OF_REACH = "plan/target-out-of-reach"


def check_targets(planning: Planning) -> Iterator[Finding]:
    """`plan/target-out-of-reach`: by what the hardware file states, a speed or a swap misses its target."""
    wanted = [s for s in planning.running if planning.fleet.slowest(s.name) and not s.settings.embedding]
    stated = (expected(s, touched(s), planning.fleet.hardware, (), "") for s in wanted)
    yield from too_slow(planning.fleet, (speed for speed in stated if speed is not None))
    yield from _slow_swaps(planning)


def too_slow(fleet: FleetConfig, speeds: Iterable[ServerSpeed]) -> Iterator[Finding]:
    """Servers whose expected speed, at its highest, is below what is wanted of them."""
    for speed in speeds:
        wanted, most = fleet.slowest(speed.server), speed.decode[1]
        if wanted is None or most >= wanted:
            continue
        own = fleet.servers[speed.server].tokens_per_second_min is not None
        key = f"servers.{speed.server}.tokens_per_second_min"
        low, short = floor(most * 10) / 10, 1 - most / wanted
        yield finding(
            "warning",
            OUT_OF_REACH,
            key if own else "orchestration.tokens_per_second_min",
            f"{speed.server} should make {wanted:g} tokens/s, at most {most:.1f} are expected: {short:.0%} short",
            notes=(f"{speed.source}: {speed.basis}",),
            fixes=(Fix(override=f"{key}={low:g}", effect="what is expected at best"),),
        )


def _slow_swaps(planning: Planning) -> Iterator[Finding]:
    """Members of exclusive groups that are read from the disk for longer than a swap should take."""
    cycle = planning.fleet.orchestration
    target = cycle.swap_target_s if cycle is not None else None
    if target is None:
        return
    late = [s for s in planning.running if s.config.exclusive and (s.load_s or 0) > target and not _kept(planning, s)]
    if not late:
        return
    slowest = max(late, key=lambda s: s.load_s or 0)
    took = slowest.load_s or 0
    yield finding(
        "warning",
        OUT_OF_REACH,
        "orchestration.swap_target_s",
        f"a swap should take {target:g} s at most, {slowest.name} is read for {took:.1f} s and no warm pool keeps it: "
        f"{took - target:.1f} s too long",
        notes=tuple(f"{s.name} is read for {s.load_s:.1f} s" for s in late if s is not slowest),
        fixes=(Fix(override=f"orchestration.swap_target_s={ceil(took)}", effect="what reading takes"),),
    )


def _kept(planning: Planning, server: ServerPlan) -> bool:
    """Whether the warm pool has room for the server's files: then a swap reads RAM."""
    pool = planning.fleet.orchestration.warm_pool if planning.fleet.orchestration else None
    return pool is not None and bool(pool.models_max) and not 0 < pool.ram_bytes < server.model.file_bytes
