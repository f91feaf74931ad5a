"""The plan compared with what the server itself reports. Pure."""

from __future__ import annotations

import msgspec

from launcher.errors import Finding, Severity, fault
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.measured import Component, Excess
from launcher.ir.plan import DeviceMemory
from launcher.ir.proof import Breakdown, Difference, ProvenMemory, ServerProof
from launcher.plan.hosts import split
from launcher.plan.memory.weights import WeightTables
from launcher.plan.server import price
from launcher.sizes import MIB, gib

LOG_STEP = MIB // 100
"""Precision of sizes in the log (0.01 MiB), in bytes."""
EXACT: tuple[Component, ...] = ("kv", "recurrent", "output")
"""Components that must agree to the log's precision: they follow from the architecture alone."""
MODEL_ROWS = 6
"""Rows of weights (host, AMX, repacked, and of devices) that the table rounds to 1 MiB each, at most."""
MODEL_SHARE = 1000
"""Weights may differ by one part in so many beside the rounding: alignment of tensors."""
LOGS_PER_BUFFER = 4
"""Buffers whose logged sizes are added up, at most; each is rounded."""


def unshared_memory(fleet: FleetConfig, catalog: Catalog) -> dict[str, tuple[DeviceMemory, ...]]:
    """Memory of each server alone, weights counted by tensor as a dry run does (a mapping has a range instead)."""
    from launcher.plan.solve import solve  # noqa: PLC0415 - a plan that is not proven does not need it here

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


def differences(
    predicted: tuple[DeviceMemory, ...], own: Breakdown, draft: Breakdown | None = None
) -> tuple[Difference, ...]:
    """Every component of one server, predicted beside proven: per device, or in total where the log has no more."""
    by_device = {memory.device: memory for memory in predicted}
    drafts = draft.memory if draft else ()
    found = []
    for name in dict.fromkeys(memory.device for memory in (*own.memory, *drafts)):
        mine = by_device.get(name, DeviceMemory(device=name))
        real = next((m for m in own.memory if m.device == name), ProvenMemory(device=name))
        if mine.model_bytes or real.model_bytes:
            found.append(_difference(name, "model", mine.model_bytes, real.model_bytes))
        found.append(_difference(name, "compute", mine.compute_bytes, real.compute_bytes))
        found.append(_difference(name, "draft", mine.draft_bytes, sum(_whole(m) for m in drafts if m.device == name)))
    for component in EXACT:
        total = sum(getattr(memory, f"{component}_bytes") for memory in predicted)
        found.append(_difference("all", component, total, getattr(own, f"{component}_bytes")))
    return tuple(d for d in found if d.predicted_bytes or d.proven_bytes)


def excesses(predicted: tuple[DeviceMemory, ...], own: Breakdown, draft: Breakdown | None = None) -> tuple[Excess, ...]:
    """How much a server takes beyond its plan by its own report, beyond the log's precision.

    A figure that the log gives for all devices together is put on the one whose context exceeds its plan most.
    """
    planned = {m.device: m.kv_bytes + m.recurrent_bytes + m.output_bytes for m in predicted}
    fullest = max(own.memory, key=lambda m: m.context_bytes - planned.get(m.device, 0), default=None)
    return tuple(
        Excess(
            device=fullest.device if d.device == "all" and fullest else d.device,
            component=d.component,
            excess_bytes=d.proven_bytes - d.predicted_bytes,
        )
        for d in differences(predicted, own, draft)
        if d.proven_bytes > d.predicted_bytes and is_mismatch(d)
    )


def proven_memory(own: Breakdown, draft: Breakdown | None = None) -> dict[str, int]:
    """Bytes per device that a dry run reported, the draft's included."""
    found: dict[str, int] = {}
    for memory in (*own.memory, *(draft.memory if draft else ())):
        found[memory.device] = found.get(memory.device, 0) + _whole(memory)
    return found


def proof_findings(proof: ServerProof) -> tuple[Finding, ...]:
    """`plan/proof-mismatch`: the plan is wrong. `plan/proof-failed`: the server refused the dry run.

    Compute buffers and drafts (whose vocabulary no dry run counts) are bounds: only too little is wrong.
    """
    key = f"servers.{proof.name}"
    if proof.failure is not None:
        by_cause = {"unreadable": "engine/proof-unreadable", "unfit": "host/engine-unfit"}
        code = by_cause.get(proof.cause or "", "plan/proof-failed")
        message = f"{proof.name} could not be proven: {proof.failure}"
        severity: Severity = "error" if proof.cause == "unfit" else "warning"
        return (fault(code, key, message, severity=severity),)
    return tuple(_finding(key, proof.name, d) for d in proof.differences if is_mismatch(d))


def is_mismatch(difference: Difference) -> bool:
    """Whether plan and server differ by more than the log's precision."""
    predicted, proven = difference.predicted_bytes, difference.proven_bytes
    if difference.component in {"compute", "draft"}:
        return proven > predicted + LOG_STEP
    if difference.component == "model":
        return beyond_rounding(predicted, proven) or beyond_rounding(proven, predicted)
    return abs(proven - predicted) > LOGS_PER_BUFFER * LOG_STEP


def beyond_rounding(predicted: int, proven: int) -> bool:
    """Whether a server's rows of memory exceed the plan by more than the log's precision."""
    return proven - predicted > MODEL_ROWS * MIB + proven // MODEL_SHARE


def _whole(memory: ProvenMemory) -> int:
    return memory.model_bytes + memory.context_bytes + memory.compute_bytes


def _difference(device: str, component: Component, predicted: int, proven: int) -> Difference:
    return Difference(device=device, component=component, predicted_bytes=predicted, proven_bytes=proven)


def _finding(key: str, name: str, d: Difference) -> Finding:
    """The finding for a wrong row: an error where more is taken than planned."""
    severity: Severity = "error" if d.proven_bytes > d.predicted_bytes else "warning"
    where = "" if d.device == "all" else f" on {d.device}"
    planned, proven = gib(d.predicted_bytes), gib(d.proven_bytes)
    if planned == proven:  # else a finding would be about two equal figures
        planned, proven = (f"{size / MIB:.2f} MiB" for size in (d.predicted_bytes, d.proven_bytes))
    message = f"{d.component} of {name}{where}: {planned} is planned, but the server itself says {proven}"
    notes = ("the architecture has something that the closed form does not know: trust the server's figure",)
    return fault("plan/proof-mismatch", key, message, *notes, severity=severity)
