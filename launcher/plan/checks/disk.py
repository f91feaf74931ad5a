"""Whether the disk of the models holds all that the config names. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding, Fix
from launcher.plan.checks.planning import Planning, finding
from launcher.sizes import gib

SHOWN = 3


def check_disk(planning: Planning) -> Iterator[Finding]:
    """`plan/disk-over-budget`: the models' files, all quantizations, are more than the disk where they lie."""
    disk, files = planning.fleet.hardware.model_disk_bytes, planning.catalog.vault
    need = sum(file.bytes for file in files)
    if disk is None or need <= disk:
        return
    largest = sorted(files, key=lambda file: (-file.bytes, file.key))
    over, dropped = need - disk, []
    for file in (f for f in largest if not f.used):
        if over > 0:
            dropped.append(file)
            over -= file.bytes
    fixes = (
        Fix(
            override=" ".join(f"~{file.key}" for file in dropped),
            effect=f"without what no server uses: saves {gib(sum(file.bytes for file in dropped))}",
        ),
    )
    yield finding(
        "warning",
        "plan/disk-over-budget",
        "hardware.model_disk_bytes",
        f"the config names {len(files)} model files of {gib(need)} together; the disk has {gib(disk)}",
        notes=tuple(f"{f.key}: {gib(f.bytes)}{'' if f.used else ', used by no server'}" for f in largest[:SHOWN]),
        fixes=fixes if over <= 0 else (),
    )
