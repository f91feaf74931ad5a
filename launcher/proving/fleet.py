"""`--prove`: dry runs of a whole plan by one binary, compared with the plan. I/O."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher import config, engine, plan
from launcher.base.environment import libraries
from launcher.compiler import Compilation
from launcher.errors import EngineError, Finding, fault
from launcher.files.state import state_root
from launcher.hardware import take_inventory
from launcher.ir.catalog import Catalog, ModelFile
from launcher.ir.config import (
    EngineConfig,
    FleetConfig,
    HardwareConfig,
    HostConfig,
    ProfileConfig,
    ServerConfig,
    TierConfig,
)
from launcher.ir.host import HostInventory
from launcher.ir.plan import DeviceMemory, FleetPlan, ServerPlan
from launcher.ir.proof import Proof, ServerProof
from launcher.plan.proof import differences, proof_findings, unshared_memory
from launcher.proving.runs import Outcome, Prover, binary_of, job_of, named_devices, prover, run_each

Machine = TypeVar("Machine", HardwareConfig, HostConfig)


def prove(compiled: Compilation, *, binary: str | None = None) -> tuple[Proof, tuple[Finding, ...]]:
    """The proof of a compiled plan, and findings with their locations in the config. See `prove_fleet`."""
    proof, found = prove_fleet(compiled.plan.config, compiled.catalog, binary=binary)
    return proof, config.locate(found, compiled.composed.sources)


def prove_file(
    file: ModelFile, server: ServerConfig, host: HardwareConfig, *, binary: str | None = None
) -> tuple[Proof, tuple[Finding, ...]]:
    """The proof of one server of one model file, by the embedded binary unless another is named, and findings."""
    alone = msgspec.structs.replace(
        server, model=file.model, quantization=file.quantization, tier="hot", draft=None, projector=False
    )
    fleet = FleetConfig(
        hardware=host,
        profile=ProfileConfig(name="inspect"),
        models={},
        quantizations={},
        tiers={"hot": TierConfig(start="boot")},
        engines={alone.engine: EngineConfig(binary=engine.EMBEDDED, dialect="")},
        ports={"server": 1},
        servers={"server": alone},
    )
    return prove_fleet(fleet, Catalog(files={f"{file.model}@{file.quantization}": file}), binary=binary)


def prove_fleet(fleet: FleetConfig, models: Catalog, *, binary: str | None = None) -> tuple[Proof, tuple[Finding, ...]]:
    """The proof of a fleet, and findings.

    Figures are for the CPU instructions of this machine, because the server reports no others; for GPUs that it lacks
    the engine's own RPC server stands in. `binary` replaces the configured one; without it the configured one is used
    if it is on this machine, else the embedded one, with a note. Raises EngineError when no binary can be found.
    """
    path, notes = _binary(fleet, binary)
    dialect = engine.probe(path, state_root() / "dialects", key="engines")
    here = take_inventory()
    stood = _stand_ins(fleet, here)
    engines = {n: binary_of(path, dialect, libraries(entry.library_path)) for n, entry in fleet.engines.items()}
    with prover(engines, here.features, stood) as using:
        features, seen = here.features, _as_seen_here(fleet, stood, here.features, dialect.name)
        planned, outcomes = _proved(using, seen, models)
        proven = (outcome.proven for outcome in outcomes.values())
        compiled_for = next((found.compiled_for for found in proven if found and found.compiled_for), ())
        used = engine.used_features(here.features, compiled_for)
        if used != features:  # the build uses less than this CPU has: again, all from what was kept but what changes
            made = {name for name, outcome in outcomes.items() if not outcome.cached}
            features, seen = used, _as_seen_here(fleet, stood, used, dialect.name)
            planned, outcomes = _proved(using, seen, models)
            outcomes = {n: o._replace(cached=o.cached and n not in made) for n, o in outcomes.items()}
        memory = unshared_memory(seen, models)
        servers = tuple(
            _judge(using, server, memory.get(server.name, ()), outcomes[server.name]) for server in planned.servers
        )
    proof = Proof(binary=str(path), version=dialect.version, features=features, servers=servers)
    return proof, plan.sort_findings((*notes, *(f for server in servers for f in proof_findings(server))))


def _proved(using: Prover, fleet: FleetConfig, models: Catalog) -> tuple[FleetPlan, dict[str, Outcome]]:
    """The plan of `fleet`, and how the dry run of each of its servers ended."""
    planned = plan.plan_fleet(fleet, models, deployment="proof", input_digest="")
    return planned, run_each(using, {s.name: job_of(using, planned, s) for s in planned.servers})


def _binary(fleet: FleetConfig, asked: str | None) -> tuple[Path, tuple[Finding, ...]]:
    """The binary for the dry runs, and a note if it is not the configured one."""
    names = sorted({server.engine for server in fleet.servers.values()})
    wanted = [asked] if asked else [engine.resolve_binary(fleet.engines[n], key=f"engines.{n}") for n in names]
    for candidate in wanted:
        located = engine.locate_binary(candidate)
        if located is not None:
            return located, ()
    if asked:
        raise EngineError.of("engine/missing-binary", f"there is no llama-server at {asked}")
    embedded = Path(engine.resolve_binary(EngineConfig(binary=engine.EMBEDDED, dialect=""), key="engines"))
    key = f"engines.{names[0]}.binary" if names else "engines"
    message = f"{wanted[0] if wanted else 'the engine'} is not on this machine: proven with {embedded}"
    return embedded, (fault("plan/proof-other-binary", key, message, severity="note"),)


def _stand_ins(fleet: FleetConfig, here: HostInventory) -> dict[str, str]:
    """GPUs that the fleet uses and this machine lacks → placeholder of an endpoint."""
    used = {device for server in fleet.servers.values() for device in named_devices(server)}
    machines: tuple[HardwareConfig | HostConfig, ...] = (fleet.hardware, *fleet.hardware.hosts.values())
    absent = [name for machine in machines for name in machine.gpus or {} if name in used and not here.gpus]
    return {name: f"{name}.stand-in" for name in absent}


def _as_seen_here(fleet: FleetConfig, stood: Mapping[str, str], features: tuple[str, ...], build: str) -> FleetConfig:
    """`fleet` for the proving build, with the CPU instructions that it uses here, and GPUs as it will see them."""
    hardware = fleet.hardware
    hosts = {name: _as_seen(host, stood, features) for name, host in hardware.hosts.items()}
    return msgspec.structs.replace(
        fleet,
        hardware=msgspec.structs.replace(_as_seen(hardware, stood, features), hosts=hosts),
        engines={n: msgspec.structs.replace(e, cpu_features=None, dialect=build) for n, e in fleet.engines.items()},
    )


def _as_seen(machine: Machine, stood: Mapping[str, str], features: tuple[str, ...]) -> Machine:
    """A machine with the CPU instructions of this one, and its GPUs as the server will see them."""
    cpu = machine.cpu and msgspec.structs.replace(machine.cpu, features=features)
    gpus = machine.gpus and {
        name: msgspec.structs.replace(gpu, backend="rpc", endpoint=stood[name]) if name in stood else gpu
        for name, gpu in machine.gpus.items()
    }
    return msgspec.structs.replace(machine, cpu=cpu, gpus=gpus)


def _judge(prover: Prover, server: ServerPlan, memory: tuple[DeviceMemory, ...], outcome: Outcome) -> ServerProof:
    proof = ServerProof(
        name=server.name,
        header="sparse" if server.model.source == "declared" else "file",
        stand_ins=tuple(device for device in server.settings.devices if device in prover.stand_ins),
        cached=outcome.cached,
    )
    if outcome.proven is None:
        cause = outcome.error.cause if outcome.error else "refused"
        return msgspec.structs.replace(proof, failure=str(outcome.error), cause=cause)
    found = differences(memory, outcome.proven.own, outcome.proven.draft)
    return msgspec.structs.replace(proof, differences=found)
