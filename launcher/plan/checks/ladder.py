"""The ladder taken after out-of-memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.ir.config import ServerConfig
from launcher.plan.checks.planning import Planning, finding
from launcher.plan.ladder import rung_config
from launcher.plan.server import price
from launcher.sizes import gib


def check_ladder(planning: Planning) -> Iterator[Finding]:
    """`plan/ladder-order`: a rung that takes no less on any device than the one before."""
    orchestration = planning.fleet.orchestration
    if orchestration is None:
        return
    for worker in orchestration.workers:
        before = price_of(planning, planning.fleet.servers.get(worker))
        for index, rung in enumerate(orchestration.oom_ladder):
            after = price_of(planning, rung_config(planning.fleet, worker, rung))
            if before is None or after is None:
                continue
            if all(after.get(device, 0) >= size for device, size in before.items()):
                device = max(before, key=before.__getitem__)
                yield finding(
                    "warning",
                    "plan/ladder-order",
                    f"orchestration.oom_ladder.{index}",
                    f"for {worker} this rung takes {gib(after.get(device, 0))} on {device}, "
                    f"not less than the {gib(before[device])} before it",
                )
            before = after


def price_of(planning: Planning, config: ServerConfig | None) -> dict[str, int] | None:
    """Resident peak by device; None where the catalogue lacks the file."""
    memory = price(planning.fleet, planning.catalog, config, planning.tables) if config else None
    return {m.device: m.resident_peak_bytes for m in memory} if memory is not None else None
