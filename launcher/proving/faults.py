"""Findings for failed dry runs: one for each way in which an engine failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from launcher import engine
from launcher.errors import Finding, Severity, fault
from launcher.ir.host import HostInventory
from launcher.proving.runs import Binary, Job, Outcome

UNFIT_NOTES: tuple[str, ...] = (
    "engine=embedded runs on every x86-64 CPU with AVX2",
    "`make engine` compiles a current llama-server for this CPU; then engine=built",
)


def failures(
    jobs: Mapping[str, Job],
    outcomes: Mapping[str, Outcome],
    engines: Mapping[str, Binary],
    inventory: HostInventory,
) -> tuple[Finding, ...]:
    """A finding for each way in which an engine failed, with the servers that it failed for."""
    groups: dict[tuple[str, str], list[str]] = {}
    errors: dict[tuple[str, str], engine.DryRunError] = {}
    for server, outcome in outcomes.items():
        if (error := outcome.error) is not None:
            key = (jobs[server].engine, server if error.cause == "refused" else str(error))
            groups.setdefault(key, []).append(server)
            errors[key] = error
    return tuple(_finding(errors[key], names, key[0], engines[key[0]], inventory) for key, names in groups.items())


def _finding(
    error: engine.DryRunError, names: list[str], name: str, binary: Binary, inventory: HostInventory
) -> Finding:
    """What a failed dry run means for the servers `names` of the engine `name`."""
    who = ", ".join(names)
    severity: Severity = "error"
    if error.cause == "unfit":
        gone = ", ".join(engine.lacking(error.compiled_for, inventory.cpu_flags))
        why = f"; it was compiled for {gone}, which {inventory.cpu_model or 'this CPU'} lacks" if gone else ""
        code, message, notes = "host/engine-unfit", f"{binary} cannot run {who} here: {error}{why}", UNFIT_NOTES
    elif error.cause == "unreadable":
        code, severity = "engine/proof-unreadable", "warning"
        message = f"what {binary} says of its memory is not understood, for {who}: {error}"
        notes = ("the plan's bounds stand; a newer `launch` may read this build",)
    else:
        code, message = "plan/proof-failed", f"{binary} does not come through its dry run of {who}: {error}"
        notes = ("it would not start either; `launch plan --json` has the words to try by hand",)
    key = f"servers.{names[0]}.model" if error.cause == "refused" else f"engines.{name}.binary"
    return fault(code, key, message, *notes, severity=severity)
