"""Prove a plan: every server's memory by the server's own dry run, beside what the plan says.

For each server: header (the real file, or a sparse one made from the catalogue) → command line as it would run →
`no_alloc` pass of the target's binary → differences. In parallel, cached; no model file and no GPU are needed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from launcher import catalog, config, engine, plan
from launcher.compiler import Compilation, with_proof
from launcher.errors import EngineError, Finding, LaunchError
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
from launcher.ir.host import HostInventory
from launcher.ir.plan import DeviceMemory, FleetPlan, ServerPlan
from launcher.ir.proof import Proof, Proved, ServerProof
from launcher.render import server_command
from launcher.sizes import gib

Machine = TypeVar("Machine", HardwareConfig, HostConfig)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One dry run: command line, environment, files, and llama.cpp's name of each device → the plan's.

    `endpoints` stand in the command line for those of RPC servers that are started for this run alone: they do not
    outlive a client that is killed.
    """

    engine: str
    words: tuple[str, ...]
    env: dict[str, str]
    model: str
    draft: str | None
    devices: dict[str, str]
    endpoints: tuple[str, ...]


class Prover(msgspec.Struct, frozen=True, kw_only=True):
    """What servers are proven with: binaries and their flags by engine, this CPU, folders."""

    engines: dict[str, tuple[str, Dialect]]
    digests: dict[str, str]
    features: tuple[str, ...]
    stand_ins: dict[str, str]
    """Device that this machine lacks → what stands for its endpoint in a command line."""
    folder: Path
    kept: Path


ATTEMPTS = 3
"""At a dry run that ends without a word of why."""
UNFIT_NOTES = (
    "engine=embedded runs on every x86-64 CPU with AVX2",
    "`make engine` compiles a current llama-server for this CPU; then engine=built",
)


class Outcome(NamedTuple):
    """How one dry run ended. `cached`: it was made earlier."""

    proven: engine.Proven | None
    error: engine.DryRunError | None = None
    cached: bool = False


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
    here = take_inventory()
    stood = _stand_ins(fleet, here)
    features, outcomes = here.features, dict[str, Outcome]()
    with _prover(fleet, {name: (str(path), dialect) for name in fleet.engines}, here.features, stood) as prover:
        while (
            True
        ):  # a second time where the build turns out to use less than this CPU has: all cached but what changes
            again = _as_seen_here(fleet, stood, features)
            planned = plan.plan_fleet(again, models, deployment="proof", input_digest="")
            before, outcomes = outcomes, _each(prover, models, planned, planned.servers)
            used = engine.used_features(here.features, _compiled_for(outcomes))
            if used == features or features != here.features:
                break
            features = used
        made = {name for name, outcome in before.items() if not outcome.cached}
        outcomes = {n: o._replace(cached=o.cached and n not in made) for n, o in outcomes.items()}
        memory = plan.unshared_memory(again, models)
        servers = tuple(
            _judge(prover, models, server, memory.get(server.name, ()), outcomes[server.name])
            for server in planned.servers
        )
    proof = Proof(binary=str(path), version=dialect.version, features=features, servers=servers)
    return proof, plan.sort_findings((*notes, *(f for server in servers for f in plan.proof_findings(server))))


class Here(NamedTuple):
    """What each server's own binary said on this host: the fleet planned by the larger of bound and proof.

    `lines`: subject and what was found, for people. `findings` are located.
    """

    compiled: Compilation
    findings: tuple[Finding, ...]
    lines: tuple[tuple[str, str], ...]


def prove_here(compiled: Compilation) -> Here:
    """Ask the binary of every server that may run on this host, with its real flags, before anything starts.

    Left out are servers that never start, whose binary or devices are not here (the host's check says so), whose
    devices are reached over RPC (their servers may be part of the fleet and not be up yet), and builds without
    `--fit`.
    """
    inventory = take_inventory()
    engines, unasked = _engines_here(compiled)
    planned = compiled.plan
    tiers = planned.tiers
    asked = [
        s
        for s in planned.servers
        if s.engine in engines and tiers[s.tier].start != "never" and _devices_here(planned, s, inventory)
    ]
    with _prover(planned.config, engines, inventory.features, {}) as prover:
        outcomes = _each(prover, compiled.catalog, planned, asked)
    findings = _failures(asked, outcomes, engines, inventory)
    memory = plan.unshared_memory(planned.config, compiled.catalog)
    proved = {
        server.name: Proved(
            build=engines[server.engine][1].name,
            excess=plan.excesses(memory.get(server.name, ()), outcome.proven.own, outcome.proven.draft),
        )
        for server in asked
        if (outcome := outcomes[server.name]).proven is not None
    }
    return Here(
        with_proof(compiled, proved),
        config.locate(plan.without_waived(planned.config, findings), compiled.composed.sources),
        (*unasked, *_proof_lines(proved, outcomes, len(planned.servers))),
    )


def _engines_here(compiled: Compilation) -> tuple[dict[str, tuple[str, Dialect]], tuple[tuple[str, str], ...]]:
    """The engines whose binary is here, with its real flags, and a line for each that cannot be asked."""
    found: dict[str, tuple[str, Dialect]] = {}
    lines = []
    for name, (binary, _) in compiled.engines.items():
        env = _env(compiled.plan.config.engines[name])
        located = engine.locate_binary(binary)
        if located is None:
            continue
        try:
            dialect = engine.probe(located, state_root() / "dialects", key=f"engines.{name}", env=env)
        except LaunchError:
            continue  # the check of binaries says so
        if "--fit" in dialect.index():
            found[name] = str(located), dialect
        else:
            lines.append((f"proof by {name}", f"{dialect.name} has no dry run: the plan's bounds stand"))
    return found, tuple(lines)


def _env(entry: EngineConfig) -> dict[str, str]:
    """Where an engine finds its libraries, as its servers get it."""
    return {"LD_LIBRARY_PATH": ":".join(entry.library_path)} if entry.library_path else {}


def _devices_here(planned: FleetPlan, server: ServerPlan, inventory: HostInventory) -> bool:
    """Whether a dry run of `server` sees the devices that it is planned on."""
    gpus = planned.config.hardware.machine(server.on).gpus or {}
    if any(gpus[d].backend == "rpc" for d in server.devices if d in gpus):
        return False
    return not server.devices or bool(inventory.gpus)


def _proof_lines(
    proved: Mapping[str, Proved], outcomes: Mapping[str, Outcome], servers: int
) -> Iterator[tuple[str, str]]:
    """What was proven, by which build, for people."""
    for build in sorted({p.build for p in proved.values()}):
        names = [name for name, p in proved.items() if p.build == build]
        cached = sum(outcomes[name].cached for name in names)
        kept = f", {cached} of them earlier" if cached else ""
        yield "memory", f"{len(names)} of {servers} servers proven by {build} in a dry run{kept}"
    for name, proof in proved.items():
        if proof.excess:
            more = ", ".join(f"{e.component} on {e.device} +{gib(e.excess_bytes)}" for e in proof.excess)
            yield f"memory of {name}", f"planned as {proof.build} says, beyond the bound: {more}"


def _failures(
    asked: Iterable[ServerPlan],
    outcomes: Mapping[str, Outcome],
    engines: Mapping[str, tuple[str, Dialect]],
    inventory: HostInventory,
) -> tuple[Finding, ...]:
    """A finding for each way in which an engine failed, with the servers that it failed for."""
    groups: dict[tuple[str, str], list[str]] = {}
    errors: dict[tuple[str, str], engine.DryRunError] = {}
    for server in asked:
        if (error := outcomes[server.name].error) is not None:
            key = (server.engine, server.name if error.cause == "refused" else str(error))
            groups.setdefault(key, []).append(server.name)
            errors[key] = error
    return tuple(
        dry_run_finding(errors[key], names, key[0], engines[key[0]], inventory) for key, names in groups.items()
    )


def dry_run_finding(
    error: engine.DryRunError, names: list[str], name: str, at: tuple[str, Dialect], inventory: HostInventory
) -> Finding:
    """What a failed dry run means for the servers `names` of the engine `name`, whose binary and flags are `at`."""
    who, binary = ", ".join(names), f"{at[0]} ({at[1].name})"
    key = f"servers.{names[0]}.model" if error.cause == "refused" else f"engines.{name}.binary"
    if error.cause == "unfit":
        gone = ", ".join(engine.lacking(error.compiled_for, inventory.cpu_flags))
        why = f"; it was compiled for {gone}, which {inventory.cpu_model or 'this CPU'} lacks" if gone else ""
        return Finding(
            code="host/engine-unfit",
            severity="error",
            key=key,
            message=f"{binary} cannot run {who} here: {error}{why}",
            notes=UNFIT_NOTES,
        )
    if error.cause == "unreadable":
        return Finding(
            code="engine/proof-unreadable",
            severity="warning",
            key=key,
            message=f"what {binary} says of its memory is not understood, for {who}: {error}",
            notes=("the plan's bounds stand; a newer `launch` may read this build",),
        )
    return Finding(
        code="plan/proof-failed",
        severity="error",
        key=key,
        message=f"{binary} does not come through its dry run of {who}: {error}",
        notes=("it would not start either; `launch plan --json` has the words to try by hand",),
    )


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


def _stand_ins(fleet: FleetConfig, here: HostInventory) -> dict[str, str]:
    """GPUs that the fleet uses and this machine has not → what stands for an endpoint."""
    used = {device for server in fleet.servers.values() for device in server.devices}
    machines: tuple[HardwareConfig | HostConfig, ...] = (fleet.hardware, *fleet.hardware.hosts.values())
    absent = [name for machine in machines for name in machine.gpus or {} if name in used and not here.gpus]
    return {name: f"{name}.stand-in" for name in absent}


@contextlib.contextmanager
def _prover(
    fleet: FleetConfig, engines: dict[str, tuple[str, Dialect]], features: tuple[str, ...], stand_ins: dict[str, str]
) -> Iterator[Prover]:
    """What is proven with, and its folder for the length of a proof."""
    digests = {name: engine.binary_digest(Path(at), _env(fleet.engines[name])) for name, (at, _) in engines.items()}
    with tempfile.TemporaryDirectory(prefix="launch-prove-") as folder:
        yield Prover(
            engines=engines,
            digests=digests,
            features=features,
            stand_ins=stand_ins,
            folder=Path(folder),
            kept=state_root() / "proofs",
        )


def _compiled_for(outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    """The CPU features that the build says it was compiled for."""
    return next((o.proven.compiled_for for o in outcomes.values() if o.proven and o.proven.compiled_for), ())


def _as_seen_here(fleet: FleetConfig, stood: Mapping[str, str], features: tuple[str, ...]) -> FleetConfig:
    """`fleet` with the instructions that the proving build uses here, and GPUs as it will see them."""
    hardware = fleet.hardware
    hosts = {name: _as_seen(host, stood, features) for name, host in hardware.hosts.items()}
    return msgspec.structs.replace(
        fleet,
        hardware=msgspec.structs.replace(_as_seen(hardware, stood, features), hosts=hosts),
        engines={n: msgspec.structs.replace(e, cpu_features=None) for n, e in fleet.engines.items()},
    )


def _as_seen(machine: Machine, stood: Mapping[str, str], features: tuple[str, ...]) -> Machine:
    """A machine with the instructions of this one, and its GPUs as the server will see them."""
    cpu = machine.cpu and msgspec.structs.replace(machine.cpu, features=features)
    gpus = machine.gpus and {name: _seen(gpu, stood.get(name)) for name, gpu in machine.gpus.items()}
    return msgspec.structs.replace(machine, cpu=cpu, gpus=gpus)


def _seen(gpu: GpuConfig, endpoint: str | None) -> GpuConfig:
    """A GPU, or the RPC server that stands in for it."""
    return msgspec.structs.replace(gpu, backend="rpc", endpoint=endpoint) if endpoint else gpu


def _each(prover: Prover, models: Catalog, planned: FleetPlan, servers: Sequence[ServerPlan]) -> dict[str, Outcome]:
    """How every server's dry run ended, as many at once as there are CPUs; equal ones are run once.

    Headers are made only for dry runs that were not kept from earlier.
    """
    jobs = {server.name: _job(prover, models, planned, server) for server in servers}
    keys = {server.name: _key(prover, server, models, jobs[server.name]) for server in servers}
    done = {
        key: Outcome(kept, cached=True) for key in set(keys.values()) if (kept := engine.read_proof(prover.kept, key))
    }
    once = {key: server for server in servers if (key := keys[server.name]) not in done}
    for file in {f"{m}@{q}": models.files[f"{m}@{q}"] for s in once.values() for m, q in _models(s)}.values():
        _write_header(prover, file)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        done |= dict(zip(once, pool.map(lambda key: _run(prover, key, jobs[once[key].name]), once), strict=True))
    return {name: done[key] for name, key in keys.items()}


def _models(server: ServerPlan) -> tuple[tuple[str, str], ...]:
    """Model and quantization of a server, then of its draft."""
    draft = server.draft
    return ((server.model, server.quantization), *(((draft.model, draft.quantization),) if draft else ()))


def _header(prover: Prover, file: ModelFile) -> Path:
    """The path to give to `--model`: the file, or where a sparse one with the catalogue's header is made."""
    declared = prover.folder / f"{file.model}@{file.quantization}.gguf"
    return declared if file.source == "declared" else Path(file.path)


def _write_header(prover: Prover, file: ModelFile) -> None:
    """Make the sparse file of a model that is not at hand."""
    path = _header(prover, file)
    if file.source == "declared" and not path.exists():
        catalog.write_sparse(file, path)


def _job(prover: Prover, models: Catalog, planned: FleetPlan, server: ServerPlan) -> Job:
    """How the proof runs one server.

    A projector is left out: it is no part of the breakdown.
    """
    model, *drafts = (str(_header(prover, models.files[f"{m}@{q}"])) for m, q in _models(server))
    draft = drafts[0] if drafts else None
    changed = msgspec.structs.replace(server, model_path=model, draft_path=draft, projector_path=None)
    command, _ = server_command(changed, planned, prover.engines)
    names = _value(command.words, "--device")
    rpc = _value(command.words, "--rpc")
    seen = [rpc[int(n.removeprefix("RPC"))] if n.startswith("RPC") and rpc else n for n in names]
    return Job(
        engine=server.engine,
        words=command.words,
        env=command.env,
        model=model,
        draft=draft,
        devices=dict(zip(seen, server.devices, strict=False)),
        endpoints=tuple(prover.stand_ins[d] for d in server.devices if d in prover.stand_ins),
    )


def _value(words: tuple[str, ...], flag: str) -> list[str]:
    """The items of a flag's comma-separated value; none where it is not given."""
    return words[words.index(flag) + 1].split(",") if flag in words else []


def _key(prover: Prover, server: ServerPlan, models: Catalog, job: Job) -> str:
    """What the proof is kept under: names, ports and folders do not count."""
    headers = [models.files[f"{model}@{quantization}"].header_digest for model, quantization in _models(server)]
    ignored = {"--model", "--alias", "--host", "--port", "--rpc", "--spec-draft-model", "--model-draft"}
    flags = [word for before, word in pairwise(job.words) if before not in ignored]
    flags += [*map(str, sorted(job.env.items())), *server.devices]
    return engine.proof_key(prover.digests[job.engine], flags, headers, prover.features)


def _run(prover: Prover, key: str, job: Job) -> Outcome:
    """A new dry run, kept under `key`."""
    for attempt in range(ATTEMPTS):
        try:
            found = _dry_run(prover, job)
        except engine.DryRunError as error:
            if error.explained or attempt == ATTEMPTS - 1:
                return Outcome(None, error)
        else:
            engine.keep_proof(prover.kept, key, found)
            return Outcome(found)
    raise AssertionError


def _dry_run(prover: Prover, job: Job) -> engine.Proven:
    """One dry run, with what stands in for devices that are not here. Raises DryRunError."""
    binary, dialect = prover.engines[job.engine]
    with engine.stand_in_devices(Path(binary), len(job.endpoints)) as real:
        stood = dict(zip(job.endpoints, real, strict=True))
        return engine.dry_run(
            tuple(_with_endpoints(word, stood) for word in job.words),
            {_with_endpoints(name, stood): ours for name, ours in job.devices.items()},
            model=job.model,
            draft=job.draft,
            env=job.env,
            jsonl=engine.AS_JSON in dialect.index(),
        )


def _with_endpoints(word: str, real: Mapping[str, str]) -> str:
    """`word` with the endpoints of stand-ins in place."""
    for name, endpoint in real.items():
        word = word.replace(name, endpoint)
    return word


def _judge(
    prover: Prover, models: Catalog, server: ServerPlan, memory: tuple[DeviceMemory, ...], outcome: Outcome
) -> ServerProof:
    """One server's proof."""
    header = "sparse" if models.files[f"{server.model}@{server.quantization}"].source == "declared" else "file"
    stand_ins = tuple(device for device in server.devices if device in prover.stand_ins)
    if outcome.proven is None:
        cause = outcome.error.cause if outcome.error else "refused"
        return ServerProof(
            name=server.name, header=header, stand_ins=stand_ins, failure=str(outcome.error), cause=cause
        )
    return ServerProof(
        name=server.name,
        header=header,
        cached=outcome.cached,
        stand_ins=stand_ins,
        differences=plan.differences(memory, outcome.proven.own, outcome.proven.draft),
    )
