"""The compiler's table of contents: overrides in, a checked deployment out.

overrides ─config→ FleetConfig ─catalog→ Catalog ─plan→ FleetPlan ─render→ Deployment
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from launcher import __version__, catalog, config, engine, plan
from launcher.base.environment import libraries
from launcher.errors import CatalogError, ConfigError, EngineError, Finding, LaunchError, PlanError, fault, has_errors
from launcher.files import known_codes, packaged_dir, write_atomic
from launcher.ir.catalog import Catalog, HeaderLock, ReadHeader, SeenDevice
from launcher.ir.config import Composed, EngineConfig, FleetConfig
from launcher.ir.deployment import content_digest
from launcher.ir.dialect import Dialect
from launcher.ir.measured import Proved, ServerSpeed
from launcher.ir.plan import RAM, FleetPlan
from launcher.render import Command, render_commands

if TYPE_CHECKING:
    from launcher.render.fleet import Rendered


class Compilation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one compilation. `findings` carry their locations and cover every stage, errors included."""

    composed: Composed
    catalog: Catalog
    plan: FleetPlan
    engines: dict[str, tuple[str, Dialect]]
    """Engine name → (binary, dialect)."""
    commands: dict[str, Command]
    """Server name → command line and environment."""
    findings: tuple[Finding, ...]
    other_findings: tuple[Finding, ...] = ()
    """The part of `findings` that comes from other stages than the plan, not located yet."""

    def require(self) -> None:
        """Raise the error class of the first stage that found an error, with all errors."""
        error = error_class(self.findings)
        if error is not None:
            raise error(f for f in self.findings if f.severity == "error")


STAGES: tuple[tuple[type[LaunchError], tuple[str, ...]], ...] = (
    (ConfigError, ("config/", "route/")),
    (CatalogError, ("catalog/",)),
    (PlanError, ("plan/", "cpu/")),
    (EngineError, ("engine/", "render/")),
)

FOLLOWING_FROM_CATALOG = ("plan/dangling-reference", "plan/projector-missing", "plan/port-unused")
"""Plan findings that only follow from a refused model file: left out, because the catalogue's finding names the
cause."""


def error_class(findings: Iterable[Finding]) -> type[LaunchError] | None:
    """The class of the first stage that found an error; None if no error comes from one of the compiler's stages."""
    errors = [f.code for f in findings if f.severity == "error"]
    return next((error for error, prefixes in STAGES if any(code.startswith(prefixes) for code in errors)), None)


def compile_fleet(
    overrides: Sequence[str], *, config_dirs: Iterable[Path] = (), draft: str | None = None
) -> Compilation:
    """Compile the fleet that `overrides` describe: compose, read models, plan, write command lines.

    `config_dirs` are the user's own config groups, searched before the packaged ones. `draft` replaces the text of the
    fleet file among them; then nothing is written, not even the lock file with model headers. Raises ConfigError,
    CatalogError or EngineError when there is nothing to plan; later errors are in `findings` (see
    `Compilation.require`).

    Python's cyclic garbage collection is off meanwhile: nearly all objects made here stay alive, and scanning them
    again and again takes a quarter of the time for a fleet of thousands.
    """
    # before it rests: Hydra's grammars, made meanwhile, lie where the kernel gives and takes an arena 15,000 times
    import launcher.config.composing  # noqa: F401

    searching = gc.isenabled()
    gc.disable()
    try:
        return _compile(overrides, config_dirs, draft)
    finally:
        if searching:
            gc.enable()


def _compile(overrides: Sequence[str], config_dirs: Iterable[Path], draft: str | None) -> Compilation:
    dirs = tuple(config_dirs)
    lock_file = _lock_file(dirs)
    headers = catalog.Headers(lock_file)
    composed = compose_config(overrides, config_dirs=dirs, headers=headers, draft=draft)
    fleet = composed.fleet
    try:
        models, found = catalog.build(fleet, kept=headers.absent())
        engines = {name: _engine(fleet, name) for name in sorted({s.engine for s in fleet.servers.values()})}
    except LaunchError as error:
        raise type(error)(config.locate(error.findings, composed.sources)) from None
    built = _with_build_names(fleet, engines)
    if any(server.rpc for server in fleet.servers.values()):
        from launcher.plan.peers import with_peers

        built = with_peers(built, {name: binary for name, (binary, _) in engines.items()})
    planned = plan.plan_fleet(
        built,
        models,
        deployment=deployment_name(fleet),
        input_digest=_input_digest(composed.tree, models, engines),
    )
    commands, spelled = render_commands(planned, engines)
    written = composed.sources.locations
    found = tuple(f for f in found if f.code != "catalog/declared-mismatch" or f.key in written)
    kept = _write_lock(headers.lock(), lock_file) if draft is None else ()
    other_findings = (*composed.findings, *found, *kept, *spelled)
    return Compilation(
        composed=composed,
        catalog=models,
        plan=planned,
        engines=engines,
        commands=commands,
        findings=_located(composed, planned, other_findings),
        other_findings=other_findings,
    )


def with_proof(compiled: Compilation, proved: Mapping[str, Proved]) -> Compilation:
    """`compiled`, with the servers in `proved` planned by the larger of calculated bound and dry run."""
    before = compiled.plan
    if not any(p.excess for p in proved.values()):  # nothing grows: only what proved it is new
        servers = (msgspec.structs.replace(s, proved=proved.get(s.name)) for s in before.servers)
        return msgspec.structs.replace(compiled, plan=msgspec.structs.replace(before, servers=tuple(servers)))
    planned = plan.plan_fleet(
        before.config,
        compiled.catalog,
        deployment=before.deployment,
        input_digest=before.input_digest,
        proved=proved,
    )
    part = plan.plan_of_host(planned, before.on) if before.on else planned
    findings = _located(compiled.composed, planned, compiled.other_findings)
    return msgspec.structs.replace(compiled, plan=part, findings=findings)


def with_speeds(compiled: Compilation, speeds: Iterable[ServerSpeed]) -> Compilation:
    """`compiled`, with speed targets checked against the measured ones of `speeds`; stated speeds are ignored."""
    here = {s.server: s for s in speeds if s.source != "stated"}
    if not here:
        return compiled
    planned = compiled.plan
    replaced = set(plan.too_slow(planned.config, (s for s in planned.speeds if s.server in here)))
    found = plan.too_slow(planned.config, here.values())
    kept = (f for f in planned.findings if f not in replaced)
    planned = msgspec.structs.replace(planned, findings=plan.sort_findings((*kept, *found)))
    findings = _located(compiled.composed, planned, compiled.other_findings)
    return msgspec.structs.replace(compiled, plan=planned, findings=findings)


def _located(composed: Composed, planned: FleetPlan, beside: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """All findings with their locations, without waived ones and without CONSEQUENT after a catalogue error."""
    refused = any(f.code.startswith("catalog/") and f.severity == "error" for f in beside)
    decided = (f for f in planned.findings if not refused or f.code not in FOLLOWING_FROM_CATALOG)
    findings = plan.apply_waivers(planned.config, (*beside, *decided), known_codes)
    return config.locate(findings, composed.sources)


def compose_config(
    overrides: Sequence[str],
    *,
    config_dirs: Iterable[Path] = (),
    headers: ReadHeader | None = None,
    draft: str | None = None,
) -> Composed:
    """Run the first stage only. Raises ConfigError, or CatalogError for a model header that it needs."""
    from launcher.config.composing import compose

    dirs = tuple(config_dirs)
    return compose(
        overrides,
        config_dirs=(*dirs, packaged_dir("conf")),
        virtual={"hardware/auto": _probe_hardware},
        headers=headers or catalog.Headers(_lock_file(dirs)),
        devices=_listed_devices,
        draft=draft,
    )


def _listed_devices(entry: Mapping[str, Any]) -> tuple[SeenDevice, ...] | None:
    """The devices that the binary of an `engines` entry lists here; None if it gives no list, or is not here."""
    binary, path = entry.get("binary"), entry.get("library_path")
    if not isinstance(binary, str):
        return None
    try:
        found = engine.locate_binary(engine.resolve_binary(EngineConfig(binary=binary, dialect="")))
    except EngineError:
        return None
    folders = [str(folder) for folder in path] if isinstance(path, list) else []
    try:
        return engine.list_devices(found, env=libraries(folders)) if found else None
    except engine.NoAnswerError:  # the check of this host asks, too, and says so
        return None


def _lock_file(config_dirs: Iterable[Path]) -> Path | None:
    """The file for the headers of a fleet file's models: `launch.lock` beside `launch.yaml`; None: no fleet file."""
    return next((path.with_suffix(".lock") for path in config_dirs if config.is_fleet_file(path)), None)


def _write_lock(lock: HeaderLock | None, path: Path | None) -> Iterator[Finding]:
    """Write the lock file if it is out of date. Returns a note if that fails."""
    if lock is None or path is None:
        return
    try:
        write_atomic(path, msgspec.json.encode(lock) + b"\n")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        note = "it would keep what model headers say, for a plan where the models are not"
        yield fault("catalog/lock-unwritten", "", message, note, severity="note")


def render(compiled: Compilation) -> Rendered:
    """Render the files of a compilation without errors, as values.

    Raises what `Compilation.require` raises, and EngineError for errors of rendering.
    """
    from launcher.render.fleet import render_fleet

    compiled.require()
    root = packaged_dir("templates")
    templates = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in sorted(root.rglob("*.j2"))}
    rendered = render_fleet(compiled.plan, compiled.engines, templates, __version__, compiled.commands)
    if has_errors(rendered.findings):
        raise EngineError(config.locate(rendered.findings, compiled.composed.sources))
    return rendered


def hosts_of(compiled: Compilation) -> tuple[str, ...]:
    """Names of the hosts that were compiled for, the front's host first; () for a single machine."""
    hosts = compiled.plan.config.hardware.hosts
    first = plan.front_host(compiled.plan.config)
    return (first, *(name for name in hosts if name != first)) if hosts else ()


def on_host(compiled: Compilation, host: str) -> Compilation:
    """The part of a compilation for one host, from which its bundle is rendered. Raises KeyError: no such host."""
    part = plan.plan_of_host(compiled.plan, host)
    commands = {server.name: compiled.commands[server.name] for server in part.servers}
    return msgspec.structs.replace(compiled, plan=part, commands=commands)


def deployment_name(fleet: FleetConfig) -> str:
    """The name of a deployment's folder and state: `HARDWARE-PROFILE`, such as `epyc-hot_only`."""
    return f"{fleet.hardware.name}-{fleet.profile.name}"


def _probe_hardware() -> dict[str, Any]:
    """This host as a hardware fragment, with the read speeds of its disk and memory as measured here."""
    from launcher.files.measured import known_rates, known_read_speed
    from launcher.hardware import hardware_tree, take_inventory

    tree, disk, rates = hardware_tree(take_inventory()), known_read_speed(), known_rates("auto")
    if disk is not None:
        tree["read_speed_bytes"] = disk.bytes_per_s
    for device, rate in rates.items():
        place = tree if device == RAM else tree.get("gpus", {}).get(device)
        if place is not None:
            place["read_bandwidth_bytes"] = rate
    return tree


def _engine(fleet: FleetConfig, name: str) -> tuple[str, Dialect]:
    """Binary and dialect of an engine; `dialect: probe` asks the binary itself. Raises EngineError."""
    entry = fleet.engines[name]
    key = f"engines.{name}"
    binary = engine.resolve_binary(entry, key=key)
    probed = entry.dialect == "probe"
    dialect = engine.probe(Path(binary), None, key=key) if probed else engine.recorded(entry.dialect, key=key)
    return binary, engine.with_cache_types(dialect, tuple(entry.cache_types))


def _with_build_names(fleet: FleetConfig, engines: Mapping[str, tuple[str, Dialect]]) -> FleetConfig:
    """`fleet` with the build's name as the dialect of probed engines: the plan knows how builds differ."""
    asked = {
        name: msgspec.structs.replace(fleet.engines[name], dialect=dialect.name)
        for name, (_, dialect) in engines.items()
        if fleet.engines[name].dialect == "probe"
    }
    return msgspec.structs.replace(fleet, engines=fleet.engines | asked) if asked else fleet


def _input_digest(tree: dict[str, Any], models: Catalog, engines: Mapping[str, tuple[str, Dialect]]) -> str:
    """sha256 over everything that determines the output: config (models in use only), headers, dialects, version."""
    used = {file.model for file in models.files.values()}
    inputs = {
        "version": __version__,
        "config": tree | {"models": {k: v for k, v in tree.get("models", {}).items() if k in used}},
        "headers": {key: file.header_digest for key, file in models.files.items() if file.source == "gguf"},
        "dialects": {name: dialect.version for name, (_, dialect) in engines.items()},
    }
    return content_digest(msgspec.json.encode(inputs, order="sorted"))
