"""The plan held against what the server itself says. Pure."""

from __future__ import annotations

import msgspec

from launcher.errors import Finding, Severity
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.plan import DeviceMemory
from launcher.ir.proof import Breakdown, Difference, ProvenMemory, ServerProof
from launcher.plan.hosts import split
from launcher.plan.memory import WeightTables
from launcher.plan.server import price
from launcher.plan.solve import solve
from launcher.sizes import MIB, gib

LOG_STEP = MIB // 100
"""Bytes to which the log gives sizes (0.01 MiB)."""
EXACT = ("kv", "recurrent", "output")
"""Components that must agree to the log's rounding: they follow from the architecture alone."""
MODEL_ROWS = 6
"""Rows of weights (host, AMX, repacked, and of devices) that the table rounds to 1 MiB each, at most."""
MODEL_SHARE = 1000
"""Weights may differ by one part in so many beside the rounding: alignment of tensors."""
LOGS_PER_BUFFER = 4
"""Buffers whose logged sizes are added up, at most; each is rounded."""


def unshared_memory(fleet: FleetConfig, catalog: Catalog) -> dict[str, tuple[DeviceMemory, ...]]:
    """What each server takes alone, weights counted by tensor as a dry run does (a mapping has a range instead)."""
    tables = WeightTables()
    found = {}
    for host in split(fleet):
        chosen, _ = solve(host.fleet, catalog, tables)
        for name, config in chosen.servers.items():
            alone = msgspec.structs.replace(config, load_mode="none")
            memory = price(chosen, catalog, alone, tables)
            if memory is not None:
                found[name] = memory
    return found


def differences(predicted: tuple[DeviceMemory, ...], breakdowns: tuple[Breakdown, ...]) -> tuple[Difference, ...]:
    """Every component of one server, predicted beside proven: by device, or over all where the log says no more.

    The last of `breakdowns` is the server's own; those before it are its draft's.
    """
    *drafts, proven = breakdowns
    by_device = {memory.device: memory for memory in predicted}
    found = []
    for real in proven.memory:
        mine = by_device.get(real.device, DeviceMemory(device=real.device))
        if mine.model_bytes or real.model_bytes:
            found.append(_difference(real.device, "model", mine.model_bytes, real.model_bytes))
        found.append(_difference(real.device, "compute", mine.compute_bytes, real.compute_bytes))
        draft = sum(_whole(m) for b in drafts for m in b.memory if m.device == real.device)
        found.append(_difference(real.device, "draft", mine.draft_bytes, draft))
    for component in EXACT:
        total = sum(getattr(memory, f"{component}_bytes") for memory in predicted)
        found.append(_difference("all", component, total, getattr(proven, f"{component}_bytes")))
    return tuple(d for d in found if d.predicted_bytes or d.proven_bytes)


def proof_findings(proof: ServerProof) -> tuple[Finding, ...]:
    """`plan/proof-mismatch` for what the plan has wrong, `plan/proof-failed` where the server refused the dry run.

    Compute buffers and drafts (whose vocabulary no dry run counts) are bounds: only too little is wrong.
    """
    key = f"servers.{proof.name}"
    if proof.failure is not None:
        message = f"{proof.name} could not be proven: {proof.failure}"
        return (Finding(code="plan/proof-failed", severity="warning", key=key, message=message),)
    return tuple(_finding(key, proof.name, d) for d in proof.differences if is_mismatch(d))


def is_mismatch(difference: Difference) -> bool:
    """Whether plan and server disagree by more than the log's rounding."""
    predicted, proven = difference.predicted_bytes, difference.proven_bytes
    if difference.component in {"compute", "draft"}:
        return proven > predicted + LOG_STEP
    if difference.component == "model":
        return abs(proven - predicted) > MODEL_ROWS * MIB + proven // MODEL_SHARE
    return abs(proven - predicted) > LOGS_PER_BUFFER * LOG_STEP


def _whole(memory: ProvenMemory) -> int:
    """All that one model takes on one device."""
    return memory.model_bytes + memory.context_bytes + memory.compute_bytes


def _difference(device: str, component: str, predicted: int, proven: int) -> Difference:
    """One row."""
    return Difference(device=device, component=component, predicted_bytes=predicted, proven_bytes=proven)


def _finding(key: str, name: str, d: Difference) -> Finding:
    """The finding for one row that is wrong: an error where more is taken than planned."""
    severity: Severity = "error" if d.proven_bytes > d.predicted_bytes else "warning"
    where = "" if d.device == "all" else f" on {d.device}"
    return Finding(
        code="plan/proof-mismatch",
        severity=severity,
        key=key,
        message=(
            f"{d.component} of {name}{where}: {gib(d.predicted_bytes)} is planned, "
            f"but the server itself says {gib(d.proven_bytes)}"
        ),
        notes=("the architecture has something that the closed form does not know: trust the server's figure",),
    )
