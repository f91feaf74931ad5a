"""Dry runs before anything starts: each server's own binary, on this host, with its real flags. I/O."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from launcher import config, engine, plan
from launcher.base.environment import libraries
from launcher.compiler import Compilation, with_proof
from launcher.errors import Finding
from launcher.hardware import take_inventory
from launcher.ir.host import HostInventory
from launcher.ir.measured import Proved
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.plan.proof import excesses, proven_memory, unshared_memory
from launcher.proving.faults import failures
from launcher.proving.runs import Binary, Job, Outcome, engine_here, job_of, named_devices, prover, run_each
from launcher.sizes import gib


class ProvedHere(NamedTuple):
    """The fleet planned by the larger of bound and dry run on this host, and what the dry runs found.

    `lines`: subject and result, for people. `findings` carry locations.
    """

    compiled: Compilation
    findings: tuple[Finding, ...]
    lines: tuple[tuple[str, str], ...]


def prove_here(compiled: Compilation) -> ProvedHere:
    """Make a dry run of every server that may run on this host, with its real flags, before anything starts.

    Left out are servers that never start, whose files, binary or devices are not here (the host's check says so), whose
    devices are reached over RPC (their servers may be part of the fleet and not be up yet), and builds without `--fit`.
    """
    inventory = take_inventory()
    engines, unasked = _engines_here(compiled)
    planned = compiled.plan
    wanted = [s for s in planned.servers if s.config.engine in engines and s.starts != "never"]
    asked = [s for s in wanted if _devices_here(planned, s, inventory, engines[s.config.engine])]
    elsewhere = [s.name for s in wanted if s not in asked]
    with prover(engines, inventory.features, {}) as here:
        jobs = {s.name: job_of(here, planned, s) for s in asked}
        shared = {n: f"split_mode {mode}" for n, job in jobs.items() if (mode := engine.without_dry_run(job.words))}
        outcomes = run_each(here, {n: job for n, job in jobs.items() if n not in shared and _files_here(job)})
    findings = failures(jobs, outcomes, engines, inventory)
    memory = unshared_memory(planned.config, compiled.catalog)
    proved = {
        server.name: Proved(
            build=engines[server.config.engine].dialect.name,
            memory=proven_memory(outcome.proven.own, outcome.proven.draft),
            excess=excesses(memory.get(server.name, ()), outcome.proven.own, outcome.proven.draft),
        )
        for server in asked
        if (outcome := outcomes.get(server.name)) is not None and outcome.proven is not None
    }
    return ProvedHere(
        with_proof(compiled, proved),
        config.locate(plan.without_waived(planned.config, findings), compiled.composed.sources),
        (
            *unasked,
            *((f"proof of {n}", f"{mode} has no dry run: the plan's bounds stand") for n, mode in shared.items()),
            *((f"proof of {n}", "its devices are not on this host: the plan's bounds stand") for n in elsewhere),
            *_proof_lines(proved, outcomes, len(planned.servers)),
        ),
    )


def _engines_here(compiled: Compilation) -> tuple[dict[str, Binary], tuple[tuple[str, str], ...]]:
    """The engines whose binary is on this host, with its real flags, and a line for each that has no dry run."""
    found: dict[str, Binary] = {}
    lines = []
    for name, (path, _) in compiled.engines.items():
        binary = engine_here(path, f"engines.{name}", libraries(compiled.plan.config.engines[name].library_path))
        if binary is not None and binary.has_dry_run:
            found[name] = binary
        elif binary is not None:
            lines.append((f"proof by {name}", f"{binary.dialect.name} has no dry run: the plan's bounds stand"))
    return found, tuple(lines)


def _files_here(job: Job) -> bool:
    """Whether a dry run finds its model and its draft, or makes sparse files from what is declared."""
    made = {path for _, path in job.sparse}
    paths = [path for path in (job.model, job.draft) if path and Path(path) not in made]
    return all(os.path.isfile(path) for path in paths)  # noqa: PTH113 - pathlib raises where it may not look


def _devices_here(planned: FleetPlan, server: ServerPlan, inventory: HostInventory, binary: Binary) -> bool:
    """Whether a dry run of `server` sees the devices that it is planned on: by a driver, or by `binary` itself."""
    gpus = planned.config.hardware.machine(server.on).gpus or {}
    named = named_devices(server.config)
    if any(gpus[d].backend == "rpc" for d in named if d in gpus):
        return False
    if not named or inventory.gpus:
        return True
    try:
        return bool(engine.list_devices(Path(binary.path), env=binary.env))
    except engine.NoAnswerError:  # the check of binaries says so
        return False


def _proof_lines(
    proved: Mapping[str, Proved], outcomes: Mapping[str, Outcome], servers: int
) -> Iterator[tuple[str, str]]:
    for build in sorted({p.build for p in proved.values()}):
        names = [name for name, p in proved.items() if p.build == build]
        cached = sum(outcomes[name].cached for name in names)
        kept = f" ({cached} by an earlier check)" if cached else ""
        yield "dry run", f"{len(names)} of {servers} servers proven by {build}{kept}"
    for name, proof in proved.items():
        if proof.excess:
            more = ", ".join(f"{e.component} on {e.device} +{gib(e.excess_bytes)}" for e in proof.excess)
            yield f"memory of {name}", f"planned as {proof.build} says, beyond the bound: {more}"
