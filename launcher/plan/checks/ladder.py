"""The ladder taken after out-of-memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.errors import Finding
from launcher.ir.config import RungConfig, ServerConfig
from launcher.plan.checks.planning import Planning, finding
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
            after = price_of(planning, changed(planning, worker, rung))
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


def changed(planning: Planning, worker: str, rung: RungConfig) -> ServerConfig | None:
    """The server that a rung falls back to; None where the names lead nowhere."""
    config = planning.fleet.servers.get(rung.server or worker)
    if config is None:
        return None
    fields = ("quantization", "n_ctx", "cache_type_k", "cache_type_v", "n_gpu_layers")
    given = {field: value for field in fields if (value := getattr(rung, field)) is not None}
    if "n_ctx" in given:
        given["n_ctx_per_slot"] = None
    return msgspec.structs.replace(config, **given)


def price_of(planning: Planning, config: ServerConfig | None) -> dict[str, int] | None:
    """Resident peak by device; None where the catalogue lacks the file."""
    memory = price(planning.fleet, planning.catalog, config, planning.tables) if config else None
    return {m.device: m.resident_peak_bytes for m in memory} if memory is not None else None
