"""One server's plan: its references resolved, its settings settled, its memory added up. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.base.addresses import is_path
from launcher.errors import Finding
from launcher.ir.catalog import Catalog, ModelFile
from launcher.ir.config import CacheTypeConfig, FleetConfig, HardwareConfig, ServerConfig
from launcher.ir.plan import DeviceMemory, Part, ServerPlan
from launcher.ir.proof import Proved
from launcher.ir.settings import Settings
from launcher.plan.builds import UNKNOWN, build_number
from launcher.plan.memory import Companions, WeightTables, add_up, server_parts
from launcher.plan.settling import NO_TYPES, settle

START_S, SLOW_MEDIUM = 180, 200 * 1000**2
"""Seconds that every start may take; bytes a second of a medium that nobody measured (a hard disk)."""


def plan_server(
    fleet: FleetConfig, catalog: Catalog, name: str, config: ServerConfig, tables: WeightTables
) -> tuple[ServerPlan | None, list[Finding]]:
    """The plan of server `name`, or None with an error when what it refers to does not exist."""
    key = f"servers.{name}"
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        message = f"there is no file of {config.model} in {config.quantization}"
        return None, [_dangling(f"{key}.quantization", message)]
    if config.tier not in fleet.tiers:
        message = f"there is no tier {config.tier}; there are: {', '.join(sorted(fleet.tiers))}"
        return None, [_dangling(f"{key}.tier", message)]
    draft = _draft(catalog, config)
    projector = catalog.projectors.get(config.model) if config.projector else None
    findings = []
    if config.draft and config.draft.file is not None and (draft is None or not draft.parts):
        message = f"there is no file of the draft {config.draft.model} in {config.draft.quantization}"
        findings.append(_dangling(f"{key}.draft", message))
        draft = None
    beside = Companions(
        draft=draft, draft_config=config.draft, projector=projector, adapters=_adapters(catalog, config)
    )
    build = build_of(fleet, config.engine)
    settled = settle(
        config,
        model,
        seen_by(fleet, config.engine),
        key=key,
        beside=beside,
        tables=tables,
        build=build,
        cache_types=_cache_types(fleet, config),
    )
    port = 0 if is_path(config.host) else config.port if config.port is not None else fleet.ports.get(name)
    if port is None:
        findings.append(_dangling(f"{key}.port", f"no port: write one here, or an entry {name} in ports"))
    parts = server_parts(model, settled.settings, beside, tables)
    tier = _tier(fleet, name, config)
    starts, read_speed_bytes = fleet.tiers[tier].start, fleet.hardware.read_speed_bytes
    planned = ServerPlan(
        name=name,
        config=config,
        settings=settled.settings,
        model=model,
        draft=draft,
        projector=projector,
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
        start_timeout_s=config.start_timeout_s or start_timeout_s(model.file_bytes, read_speed_bytes),
        load_s=model.file_bytes / read_speed_bytes if read_speed_bytes else None,
        parts=parts,
        memory=add_up(parts),
    )
    return planned, [*findings, *settled.findings]


def with_proof(server: ServerPlan, proved: Mapping[str, Proved]) -> ServerPlan:
    """`server` with what its own binary says that it takes beyond the bound, where it was asked."""
    proof = proved.get(server.name)
    if proof is None:
        return server
    grown = (Part(device=e.device, component=e.component, committed=e.excess_bytes) for e in proof.excess)
    parts = (*server.parts, *grown)
    return msgspec.structs.replace(server, parts=parts, memory=add_up(parts), proved=proof)


def price(
    fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables
) -> tuple[DeviceMemory, ...] | None:
    """Memory of a changed server; None where the catalogue lacks its file."""
    found = settled_price(fleet, catalog, config, tables)
    return found[1] if found is not None else None


def settled_price(
    fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables
) -> tuple[Settings, tuple[DeviceMemory, ...]] | None:
    """Settings and memory of a changed server; None where the catalogue lacks its file."""
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        return None
    beside = Companions(
        draft=_draft(catalog, config),
        draft_config=config.draft,
        projector=catalog.projectors.get(config.model) if config.projector else None,
        adapters=_adapters(catalog, config),
    )
    build = build_of(fleet, config.engine)
    machine = seen_by(fleet, config.engine)
    own = _cache_types(fleet, config)
    settings = settle(config, model, machine, beside=beside, tables=tables, build=build, cache_types=own).settings
    return settings, add_up(server_parts(model, settings, beside, tables))


def _cache_types(fleet: FleetConfig, config: ServerConfig) -> Mapping[str, CacheTypeConfig]:
    """K/V types that only the server's engine has."""
    engine = fleet.engines.get(config.engine)
    return engine.cache_types if engine else NO_TYPES


def _draft(catalog: Catalog, config: ServerConfig) -> ModelFile | None:
    """The file of the server's draft model, if it has one and the catalogue knows it."""
    file = config.draft.file if config.draft else None
    return catalog.get(*file) if file else None


def _adapters(catalog: Catalog, config: ServerConfig) -> tuple[int, ...]:
    """Bytes of the server's LoRA adapters, as far as the catalogue knows them."""
    return tuple(catalog.adapters[a.path].tensor_bytes for a in config.lora if a.path in catalog.adapters)


def start_timeout_s(file_bytes: int, read_speed_bytes: int | None) -> float:
    """How long a start may take that nobody limits: twice the reading, and a minute; at least 180 s.

    One that makes no progress ends earlier, so this is an end for those that never come to one.
    """
    return float(max(START_S, 60 + 2 * file_bytes // (read_speed_bytes or SLOW_MEDIUM)))


def seen_by(fleet: FleetConfig, engine: str) -> HardwareConfig:
    """The machine with the CPU features that builds of `engine` use."""
    hardware, entry = fleet.hardware, fleet.engines.get(engine)
    if entry is None or entry.cpu_features is None or hardware.cpu is None:
        return hardware
    used = tuple(f for f in hardware.cpu.features if f in entry.cpu_features)
    return msgspec.structs.replace(hardware, cpu=msgspec.structs.replace(hardware.cpu, features=used))


def build_of(fleet: FleetConfig, engine: str) -> int:
    """Number of the build that `engine` is; 0 where its dialect has none."""
    entry = fleet.engines.get(engine)
    return build_number(entry.dialect) if entry else UNKNOWN


def _tier(fleet: FleetConfig, name: str, config: ServerConfig) -> str:
    """The server's tier; one named by include_warm joins the first tier that starts at boot."""
    if name in fleet.include_warm and fleet.tiers[config.tier].start == "demand":
        return next((t for t, tier in fleet.tiers.items() if tier.start == "boot"), config.tier)
    return config.tier


def _dangling(key: str, message: str) -> Finding:
    """A reference to nothing: the config and catalog stages report these first, with the nearest name."""
    return Finding(code="plan/dangling-reference", severity="error", key=key, message=message)
