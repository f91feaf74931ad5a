"""Prove a plan: every server's memory by the server's own dry run, beside what the plan says.

For each server: header (the real file, or a sparse one made from the catalogue) → command line as it would run →
`no_alloc` pass of the target's binary → differences. In parallel, cached; no model file and no GPU are needed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher import catalog, config, engine, plan
from launcher.compiler import Compilation
from launcher.errors import EngineError, Finding
from launcher.files import state_root
from launcher.hardware import take_inventory
from launcher.ir.catalog import Catalog, ModelFile
from launcher.ir.config import (
    EngineConfig,
    FleetConfig,
    GpuConfig,
    HardwareConfig,
    HostConfig,
    ProfileConfig,
    ServerConfig,
    TierConfig,
)
from launcher.ir.dialect import Dialect
from launcher.ir.plan import DeviceMemory, FleetPlan, ServerPlan
from launcher.ir.proof import Breakdown, Proof, ServerProof
from launcher.render import render_commands

Machine = TypeVar("Machine", HardwareConfig, HostConfig)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One dry run: command line, environment, and llama.cpp's name of each device → the plan's.

    `endpoints` stand in the command line for those of RPC servers that are started for this run alone: they do not
    outlive a client that is killed.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    devices: dict[str, str]
    endpoints: tuple[str, ...]


class Prover(msgspec.Struct, frozen=True, kw_only=True):
    """What every server is proven with: binary, flags, the machine as `plan` sees it, folders."""

    binary: Path
    dialect: Dialect
    hardware: HardwareConfig
    stand_ins: dict[str, str]
    """Device that this machine lacks → what stands for its endpoint in a command line."""
    folder: Path
    kept: Path


def prove(compiled: Compilation, *, binary: str | None = None) -> tuple[Proof, tuple[Finding, ...]]:
    """The proof of a compiled plan, and what it found, located in the config. See `prove_fleet`."""
    proof, found = prove_fleet(compiled.plan.config, compiled.catalog, binary=binary)
    return proof, config.locate(found, compiled.composed.sources)


def prove_file(
    file: ModelFile, server: ServerConfig, host: HardwareConfig, *, binary: str | None = None
) -> tuple[Proof, tuple[Finding, ...]]:
    """The proof of one server of one model file, by the embedded binary unless another is named."""
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
    """The proof of a fleet, and what it found.

    Figures are for the instructions of this machine, because the server has no others to show; GPUs that it lacks
    are stood in for by the engine's own RPC server. `binary` replaces the configured one, which else is used where
    it is at hand, and else the embedded one, with a note. Raises EngineError when no binary can be found.
    """
    path, notes = _binary(fleet, binary)
    dialect = engine.probe(path, state_root() / "dialects", key="engines")
    with _prover(fleet, path, dialect) as prover:
        again = msgspec.structs.replace(fleet, hardware=prover.hardware)
        planned = plan.plan_fleet(again, models, deployment="proof", input_digest="")
        servers = _each(prover, models, planned, plan.unshared_memory(again, models))
    proof = Proof(binary=str(path), version=dialect.version, features=prover.hardware.cpu.features, servers=servers)
    return proof, plan.sort_findings((*notes, *(f for server in servers for f in plan.proof_findings(server))))


def _binary(fleet: FleetConfig, asked: str | None) -> tuple[Path, tuple[Finding, ...]]:
    """The binary that proves, and a note when it is not the configured one."""
    names = sorted({server.engine for server in fleet.servers.values()})
    wanted = [asked] if asked else [engine.resolve_binary(fleet.engines[n], key=f"engines.{n}") for n in names]
    for candidate in wanted:
        located = engine.locate_binary(candidate)
        if located is not None:
            return located, ()
    if asked:
        finding = Finding(
            code="engine/missing-binary", severity="error", key="", message=f"there is no llama-server at {asked}"
        )
        raise EngineError([finding])
    embedded = Path(engine.resolve_binary(EngineConfig(binary=engine.EMBEDDED, dialect=""), key="engines"))
    note = Finding(
        code="plan/proof-other-binary",
        severity="note",
        key=f"engines.{names[0]}.binary" if names else "engines",
        message=f"{wanted[0] if wanted else 'the engine'} is not on this machine: proven with {embedded}",
    )
    return embedded, (note,)


@contextlib.contextmanager
def _prover(fleet: FleetConfig, binary: Path, dialect: Dialect) -> Iterator[Prover]:
    """Folders and stand-ins for the length of a proof, and the hardware that the server will see."""
    here = take_inventory()
    used = {device for server in fleet.servers.values() for device in server.devices}
    machines: tuple[HardwareConfig | HostConfig, ...] = (fleet.hardware, *fleet.hardware.hosts.values())
    absent = [name for machine in machines for name in machine.gpus or {} if name in used and not here.gpus]
    with tempfile.TemporaryDirectory(prefix="launch-prove-") as folder:
        stood = {name: f"{name}.stand-in" for name in absent}
        hosts = {name: _as_seen(host, stood, here.features) for name, host in fleet.hardware.hosts.items()}
        yield Prover(
            binary=binary,
            dialect=dialect,
            hardware=msgspec.structs.replace(_as_seen(fleet.hardware, stood, here.features), hosts=hosts),
            stand_ins=stood,
            folder=Path(folder),
            kept=state_root() / "proofs",
        )


def _as_seen(machine: Machine, stood: Mapping[str, str], features: tuple[str, ...]) -> Machine:
    """A machine with the instructions of this one, and its GPUs as the server will see them."""
    cpu = machine.cpu and msgspec.structs.replace(machine.cpu, features=features)
    gpus = machine.gpus and {name: _seen(gpu, stood.get(name)) for name, gpu in machine.gpus.items()}
    return msgspec.structs.replace(machine, cpu=cpu, gpus=gpus)


def _seen(gpu: GpuConfig, endpoint: str | None) -> GpuConfig:
    """A GPU, or the RPC server that stands in for it."""
    return msgspec.structs.replace(gpu, backend="rpc", endpoint=endpoint) if endpoint else gpu


def _each(
    prover: Prover, models: Catalog, planned: FleetPlan, memory: Mapping[str, tuple[DeviceMemory, ...]]
) -> tuple[ServerProof, ...]:
    """Every server's proof, as many at once as there are CPUs; equal ones are run once."""
    headers = {key: _header(prover, file) for key, file in models.files.items()}
    jobs = {server.name: _job(prover, planned, server, headers) for server in planned.servers}
    keys = {name: _key(prover, server, models, jobs[name]) for name, server in _by_name(planned).items()}
    once = {key: name for name, key in keys.items()}
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        done = dict(zip(once, pool.map(lambda key: _run(prover, key, jobs[once[key]]), once), strict=True))
    return tuple(
        _judge(prover, server, headers, memory.get(server.name, ()), done[keys[server.name]])
        for server in planned.servers
    )


def _by_name(planned: FleetPlan) -> dict[str, ServerPlan]:
    """Servers by name, in plan order."""
    return {server.name: server for server in planned.servers}


def _header(prover: Prover, file: ModelFile) -> tuple[str, str]:
    """The path to give to `--model`, and what it is: `file` or `sparse`."""
    if file.source != "declared":
        return file.path, "file"
    path = prover.folder / f"{file.model}@{file.quantization}.gguf"
    catalog.write_sparse(file, path)
    return str(path), "sparse"


def _job(prover: Prover, planned: FleetPlan, server: ServerPlan, headers: Mapping[str, tuple[str, str]]) -> Job:
    """How the proof runs one server.

    A projector is left out: it is no part of the breakdown.
    """
    draft = server.draft and headers.get(f"{server.draft.model}@{server.draft.quantization}")
    changed = msgspec.structs.replace(
        server,
        model_path=headers[f"{server.model}@{server.quantization}"][0],
        draft_path=draft[0] if draft else None,
        projector_path=None,
    )
    engines = {name: (str(prover.binary), prover.dialect) for name in planned.config.engines}
    commands, _ = render_commands(msgspec.structs.replace(planned, servers=(changed,)), engines)
    command = commands[server.name]
    index = command.words.index("--device") + 1 if "--device" in command.words else 0
    names = command.words[index].split(",") if index else []
    return Job(
        words=command.words,
        env=command.env,
        devices=dict(zip(names, server.devices, strict=False)),
        endpoints=tuple(prover.stand_ins[d] for d in server.devices if d in prover.stand_ins),
    )


def _key(prover: Prover, server: ServerPlan, models: Catalog, job: Job) -> str:
    """What the proof is kept under: names, ports and folders do not count."""
    used = [f"{server.model}@{server.quantization}"]
    used += [f"{server.draft.model}@{server.draft.quantization}"] if server.draft else []
    headers = [models.files[key].header_digest for key in used]
    ignored = {"--model", "--alias", "--host", "--port", "--rpc", "--spec-draft-model", "--model-draft"}
    flags = [word for before, word in pairwise(job.words) if before not in ignored]
    flags += [*map(str, sorted(job.env.items())), *job.devices.values()]
    return engine.proof_key(prover.binary, flags, headers, prover.hardware.cpu.features)


def _run(prover: Prover, key: str, job: Job) -> tuple[tuple[Breakdown, ...], bool] | str:
    """Breakdowns and whether they were kept from before; why not, where the server refuses."""
    kept = engine.read_proof(prover.kept, key)
    if kept is not None:
        return kept, True
    try:
        with engine.stand_in_devices(prover.binary, len(job.endpoints)) as real:
            words = tuple(_with_endpoints(word, dict(zip(job.endpoints, real, strict=True))) for word in job.words)
            found = engine.dry_run(words, job.devices, env=job.env)
    except engine.DryRunError as error:
        return str(error)
    engine.keep_proof(prover.kept, key, found)
    return found, False


def _with_endpoints(word: str, real: Mapping[str, str]) -> str:
    """`word` with the endpoints of stand-ins in place."""
    for name, endpoint in real.items():
        word = word.replace(name, endpoint)
    return word


def _judge(
    prover: Prover,
    server: ServerPlan,
    headers: Mapping[str, tuple[str, str]],
    memory: tuple[DeviceMemory, ...],
    done: tuple[tuple[Breakdown, ...], bool] | str,
) -> ServerProof:
    """One server's proof."""
    header = headers[f"{server.model}@{server.quantization}"][1]
    stand_ins = tuple(device for device in server.devices if device in prover.stand_ins)
    if isinstance(done, str) or not done[0]:
        failure = done if isinstance(done, str) else "the server's log has no breakdown"
        return ServerProof(name=server.name, header=header, stand_ins=stand_ins, failure=failure)
    breakdowns, cached = done
    return ServerProof(
        name=server.name,
        header=header,
        cached=cached,
        stand_ins=stand_ins,
        differences=plan.differences(memory, breakdowns),
    )
