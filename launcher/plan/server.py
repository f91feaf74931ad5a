"""The plan of one server and of its fallback rungs: references resolved, settings settled, memory added up. Pure."""

from __future__ import annotations

import msgspec

from launcher.base.addresses import is_path
from launcher.errors import Finding, fault
from launcher.ir.catalog import Catalog, ModelFile
from launcher.ir.config import FleetConfig, RungConfig, ServerConfig
from launcher.ir.measured import Proved
from launcher.ir.plan import DeviceMemory, Part, RungPlan, ServerPlan, Settings
from launcher.plan.builds import UNKNOWN, build_number
from launcher.plan.hosts import tier_of
from launcher.plan.memory.process import Companions, add_up, server_parts
from launcher.plan.memory.weights import WeightTables
from launcher.plan.settling import NO_TYPES, Settled, settle

START_S, SLOW_MEDIUM = 180, 200 * 1000**2
"""Seconds that every start may take; bytes a second of a medium that nobody measured (a hard disk)."""

OWN_FIELDS = ("port", "tier", "roles", "aliases", "exclusive", "default", "after", "fatal")
"""Fields that stay the worker's own where a rung serves another server's model."""


def plan_server(
    fleet: FleetConfig, catalog: Catalog, name: str, config: ServerConfig, tables: WeightTables
) -> tuple[ServerPlan | None, list[Finding]]:
    """The plan of server `name`; None with an error where a reference does not resolve."""
    key = f"servers.{name}"
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        message = f"there is no file of {config.model} in {config.quantization}"
        return None, [_dangling(f"{key}.quantization", message)]
    if config.tier not in fleet.tiers:
        message = f"there is no tier {config.tier}; there are: {', '.join(sorted(fleet.tiers))}"
        return None, [_dangling(f"{key}.tier", message)]
    findings = []
    beside = _companions(catalog, config)
    if config.draft and config.draft.file is not None and (beside.draft is None or not beside.draft.parts):
        message = f"there is no file of the draft {config.draft.model} in {config.draft.quantization}"
        findings.append(_dangling(f"{key}.draft", message))
        beside = msgspec.structs.replace(beside, draft=None)
    settled = _settled(fleet, config, model, beside, tables, key=key)
    port = 0 if is_path(config.host) else config.port if config.port is not None else fleet.ports.get(name)
    if port is None:
        findings.append(_dangling(f"{key}.port", f"no port: write one here, or an entry {name} in ports"))
    tier = config.tier
    if name in fleet.include_warm and fleet.tiers[tier].start == "demand":
        tier = tier_of(fleet, "boot") or tier
    starts, speed = fleet.tiers[tier].start, fleet.hardware.read_speed_bytes
    parts = server_parts(model, settled.settings, beside, tables)
    planned = ServerPlan(
        name=name,
        config=config,
        settings=settled.settings,
        model=model,
        draft=beside.draft,
        projector=beside.projector,
        lora=tuple(
            msgspec.structs.replace(adapter, path=catalog.adapters[adapter.path].path)
            for adapter in config.lora
            if adapter.path in catalog.adapters
        ),
        tier=tier,
        starts=starts,
        initial=starts == "boot",
        port=port or 0,
        default=config.default,
        after=config.after,
        start_timeout_s=config.start_timeout_s or start_timeout_s(model.file_bytes, speed),
        load_s=model.file_bytes / speed if speed else None,
        parts=parts,
        memory=add_up(parts),
    )
    return planned, [*findings, *settled.findings]


def start_timeout_s(file_bytes: int, read_speed_bytes: int | None) -> float:
    """Default start timeout in seconds: twice the reading time and a minute; at least 180.

    A start without progress ends earlier, so this ends only those that progress and never complete.
    """
    return float(max(START_S, 60 + 2 * file_bytes // (read_speed_bytes or SLOW_MEDIUM)))


def with_proof(server: ServerPlan, proof: Proved) -> ServerPlan:
    """`server` with what its own binary's dry run takes beyond the bound."""
    grown = (Part(device=e.device, component=e.component, committed=e.excess_bytes) for e in proof.excess)
    parts = (*server.parts, *grown)
    return msgspec.structs.replace(server, parts=parts, memory=add_up(parts), proved=proof)


def price(
    fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables
) -> tuple[DeviceMemory, ...] | None:
    """Memory of a changed server; None where the catalogue lacks its file."""
    found = settled_price(fleet, catalog, config, tables)
    return found[1] if found is not None else None


def peaks(fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables) -> dict[str, int]:
    """Resident peak of a changed server by device; nothing where the catalogue lacks its file."""
    return {m.device: m.resident_peak_bytes for m in price(fleet, catalog, config, tables) or ()}


def settled_price(
    fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables
) -> tuple[Settings, tuple[DeviceMemory, ...]] | None:
    """Settings and memory of a changed server; None where the catalogue lacks its file."""
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        return None
    beside = _companions(catalog, config)
    settings = _settled(fleet, config, model, beside, tables).settings
    return settings, add_up(server_parts(model, settings, beside, tables))


def _companions(catalog: Catalog, config: ServerConfig) -> Companions:
    """The files loaded beside the server's model, as far as the catalogue has them."""
    file = config.draft.file if config.draft else None
    return Companions(
        draft=catalog.get(*file) if file else None,
        draft_config=config.draft,
        projector=catalog.projectors.get(config.model) if config.projector else None,
        adapters=tuple(catalog.adapters[a.path].tensor_bytes for a in config.lora if a.path in catalog.adapters),
    )


def _settled(
    fleet: FleetConfig,
    config: ServerConfig,
    model: ModelFile,
    beside: Companions,
    tables: WeightTables,
    *,
    key: str = "server",
) -> Settled:
    """The server settled for its engine, on the machine with the CPU features that this engine's builds use."""
    machine, engine = fleet.hardware, fleet.engines.get(config.engine)
    if engine is not None and engine.cpu_features is not None:
        used = tuple(f for f in machine.cpu.features if f in engine.cpu_features)
        machine = msgspec.structs.replace(machine, cpu=msgspec.structs.replace(machine.cpu, features=used))
    return settle(
        config,
        model,
        machine,
        key=key,
        beside=beside,
        tables=tables,
        build=build_number(engine.dialect) if engine else UNKNOWN,
        cache_types=engine.cache_types if engine else NO_TYPES,
    )


def _dangling(key: str, message: str) -> Finding:
    """An unresolved reference: config and catalogue stages report these first, with the nearest name."""
    return fault("plan/dangling-reference", key, message)


def rung_config(fleet: FleetConfig, worker: str, rung: RungConfig) -> ServerConfig | None:
    """`worker` as `rung` has it: complete settings, not an addition to the rung before.

    Where a rung serves another server's model, port, names and groups stay the worker's own. None where a name is
    unknown, or the worker's model has no file in the rung's quantization.
    """
    own, config = fleet.servers.get(worker), fleet.servers.get(rung.server or worker)
    if own is None or config is None:
        return None
    model = fleet.models.get(config.model)
    if rung.quantization is not None and model is not None and rung.quantization not in model.files:
        return None
    set_here = msgspec.structs.asdict(rung)
    given = {field: value for field, value in set_here.items() if field != "server" and value is not None}
    if "n_ctx" in given:
        given["n_ctx_per_slot"] = None
    if rung.server is not None:
        config = msgspec.structs.replace(config, **{field: getattr(own, field) for field in OWN_FIELDS})
    return msgspec.structs.replace(config, **given)


def ladders(fleet: FleetConfig, catalog: Catalog, tables: WeightTables) -> dict[str, tuple[RungPlan, ...]]:
    """The rungs of every worker, in order; workers without rungs are left out."""
    if fleet.orchestration is None:
        return {}
    found: dict[str, list[RungPlan]] = {}
    for worker in fleet.orchestration.workers:
        for rung in fleet.orchestration.oom_ladder:
            config = rung_config(fleet, worker, rung)
            # what is wrong with the worker itself is said by its own plan
            planned = plan_server(fleet, catalog, worker, config, tables)[0] if config is not None else None
            if planned is not None:
                found.setdefault(worker, []).append(RungPlan(label=rung_label(rung), server=planned))
    return {worker: tuple(rungs) for worker, rungs in found.items()}


def rung_label(rung: RungConfig) -> str:
    """`q3_k_m, n_ctx 2048`: what a rung sets, for people."""
    parts = [rung.server] if rung.server else []
    parts += [rung.quantization] if rung.quantization else []
    names = {"n_ctx": "n_ctx", "cache_type_k": "K", "cache_type_v": "V", "n_gpu_layers": "GPU layers"}
    parts += [f"{name} {value}" for field, name in names.items() if (value := getattr(rung, field)) is not None]
    return ", ".join(parts) or "unchanged"
