"""Dry runs before a rendered folder is installed: its servers' command lines as they stand. I/O."""

from __future__ import annotations

import contextlib
from itertools import pairwise

from launcher import engine
from launcher.catalog.files import read_header
from launcher.errors import Finding, LaunchError, fault
from launcher.hardware import take_inventory
from launcher.ir.fleet import FleetManifest, ServerUnit
from launcher.ir.proof import Breakdown
from launcher.plan.proof import beyond_rounding, proven_memory
from launcher.proving.faults import failures
from launcher.proving.runs import (
    DRAFT_MODEL,
    FLAGS_OF_FILES_MADE_AT_START,
    Binary,
    Job,
    engine_here,
    in_order,
    names_of,
    prover,
    run_each,
    without,
)
from launcher.sizes import gib

LIBRARIES = "LD_LIBRARY_PATH"


def prove_rendered(manifest: FleetManifest) -> tuple[Finding, ...]:
    """Findings from a dry run of every server of a rendered deployment on this host.

    Left out are servers that never start, whose binary or model is not here, whose GPU is not here or is reached over
    RPC, and builds without `--fit`. `plan/proof-mismatch` (an error here: the rendered limits are too small) if a
    server takes more than its units allow.
    """
    inventory = take_inventory()
    found: dict[str, Binary | None] = {}
    gpus = {device.name for device in manifest.devices if device.kind == "gpu"}
    jobs: dict[str, Job] = {}
    for unit in manifest.servers:
        name, devices = unit.argv[0], tuple(need.device for need in unit.memory if need.device in gpus)
        if unit.start == "never" or "--rpc" in unit.argv or (devices and not inventory.gpus):
            continue
        if found.get(name) is None:  # one that was not found may be with another server's libraries
            found[name] = engine_here(name, "engines", {k: v for k, v in unit.env.items() if k == LIBRARIES})
        binary = found[name]
        if binary is not None and binary.has_dry_run and not engine.without_dry_run(unit.argv):
            with contextlib.suppress(LaunchError):  # what is missing is said when the units are verified
                jobs[unit.name] = _job(unit, name, devices)
    engines = {name: binary for name, binary in found.items() if binary is not None}
    with prover(engines, inventory.features, {}) as here:
        outcomes = run_each(here, jobs)
    more = (
        _outgrown(unit, proven.own, proven.draft, engines[unit.argv[0]].dialect.name)
        for unit in manifest.servers
        if unit.name in outcomes and (proven := outcomes[unit.name].proven) is not None
    )
    return (*failures(jobs, outcomes, engines, inventory), *(finding for finding in more if finding is not None))


def _job(unit: ServerUnit, name: str, devices: tuple[str, ...]) -> Job:
    """The dry run of a rendered server. Raises CatalogError where a header cannot be read."""
    words = without(unit.argv, FLAGS_OF_FILES_MADE_AT_START)
    draft = next((value for flag, value in pairwise(words) if flag in DRAFT_MODEL), None)
    return Job(
        engine=name,
        words=words,
        env=unit.env,
        model=unit.model_path,
        draft=draft,
        devices=names_of(words, in_order(words, devices)),
        endpoints=(),
        headers=tuple(read_header(path).digest for path in (unit.model_path, *filter(None, (draft,)))),
    )


def _outgrown(unit: ServerUnit, own: Breakdown, draft: Breakdown | None, build: str) -> Finding | None:
    """The finding for a server that takes more on a device than it was rendered with, beyond the log's rounding."""
    planned = {need.device: need.committed_bytes + need.file_bytes for need in unit.memory}
    proven = proven_memory(own, draft).items()
    over = {device: size for device, size in proven if beyond_rounding(planned.get(device, 0), size)}
    if not over:
        return None
    figures = ", ".join(f"{gib(size)} on {at}, {gib(planned.get(at, 0))} planned" for at, size in over.items())
    message = f"{unit.name} takes more than it was rendered with, as {build} says: {figures}"
    note = "render it on this host with `launch render --prove …`: its limits are then the proven ones"
    return fault("plan/proof-mismatch", f"servers.{unit.name}", message, note)
