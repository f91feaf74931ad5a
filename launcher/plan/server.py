"""One server's plan: its references resolved, its settings settled, its memory added up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from launcher.errors import Finding
from launcher.ir.catalog import Catalog, ModelFile, ProjectorFile
from launcher.ir.config import FleetConfig, HardwareConfig, ServerConfig
from launcher.ir.plan import DeviceMemory, ServerPlan
from launcher.ir.proof import Proved
from launcher.plan.memory import Companions, Part, WeightTables, add_up, server_parts
from launcher.plan.settings import Settings
from launcher.plan.settle import settle

Starts = Literal["boot", "demand", "never"]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A server as the plan's stages pass it on. `parts` are what this process takes alone, nothing shared.

    `starts`: when its tier runs it. `initial`: it is up after start (of an exclusive group only one is).
    """

    name: str
    config: ServerConfig
    model: ModelFile
    draft: ModelFile | None
    projector: ProjectorFile | None
    settings: Settings
    parts: tuple[Part, ...]
    starts: Starts
    initial: bool
    plan: ServerPlan

    @property
    def key(self) -> str:
        """Dotted config key."""
        return f"servers.{self.name}"

    def on(self, device: str) -> DeviceMemory | None:
        """What it takes on `device`, sharing considered."""
        return next((m for m in self.plan.memory if m.device == device), None)


def plan_server(
    fleet: FleetConfig, catalog: Catalog, name: str, config: ServerConfig, tables: WeightTables
) -> tuple[Planned | None, list[Finding]]:
    """The plan of server `name`, or None with an error when what it refers to does not exist."""
    key = f"servers.{name}"
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        message = f"there is no file of {config.model} in {config.quantization}"
        return None, [_dangling(f"{key}.quantization", message)]
    if config.tier not in fleet.tiers:
        message = f"there is no tier {config.tier}; there are: {', '.join(sorted(fleet.tiers))}"
        return None, [_dangling(f"{key}.tier", message)]
    draft = catalog.get(config.draft.model, config.draft.quantization) if config.draft else None
    projector = catalog.projectors.get(config.model) if config.projector else None
    findings = []
    if config.draft and (draft is None or not draft.parts):
        message = f"there is no file of the draft {config.draft.model} in {config.draft.quantization}"
        findings.append(_dangling(f"{key}.draft", message))
        draft = None
    beside = Companions(draft=draft, draft_config=config.draft, projector=projector)
    settled = settle(config, model, seen_by(fleet, config.engine), key=key, beside=beside, tables=tables)
    port = config.port if config.port is not None else fleet.ports.get(name)
    if port is None:
        findings.append(_dangling(f"{key}.port", f"no port: write one here, or an entry {name} in ports"))
    parts = server_parts(model, settled.settings, beside, tables)
    tier = _tier(fleet, name, config)
    plan = _server_plan(name, config, model, beside, settings=settled.settings, port=port or 0, tier=tier)
    planned = Planned(
        name=name,
        config=config,
        model=model,
        draft=draft,
        projector=projector,
        settings=settled.settings,
        parts=parts,
        starts=fleet.tiers[tier].start,
        initial=fleet.tiers[tier].start == "boot",
        plan=msgspec.structs.replace(plan, memory=add_up(parts)),
    )
    return planned, [*findings, *settled.findings]


def with_proof(server: Planned, proved: Mapping[str, Proved]) -> Planned:
    """`server` with what its own binary says that it takes beyond the bound, where it was asked."""
    proof = proved.get(server.name)
    if proof is None:
        return server
    grown = (Part(device=e.device, component=e.component, committed=e.excess_bytes) for e in proof.excess)
    parts = (*server.parts, *grown)
    plan = msgspec.structs.replace(server.plan, memory=add_up(parts), proven_by=proof.build)
    return msgspec.structs.replace(server, parts=parts, plan=plan)


def price(
    fleet: FleetConfig, catalog: Catalog, config: ServerConfig, tables: WeightTables
) -> tuple[DeviceMemory, ...] | None:
    """Memory of a changed server; None where the catalogue lacks its file."""
    model = catalog.get(config.model, config.quantization)
    if model is None or not model.parts:
        return None
    beside = Companions(
        draft=catalog.get(config.draft.model, config.draft.quantization) if config.draft else None,
        draft_config=config.draft,
        projector=catalog.projectors.get(config.model) if config.projector else None,
    )
    settings = settle(config, model, seen_by(fleet, config.engine), beside=beside, tables=tables).settings
    return add_up(server_parts(model, settings, beside, tables))


def seen_by(fleet: FleetConfig, engine: str) -> HardwareConfig:
    """The machine with the CPU features that builds of `engine` use."""
    hardware, entry = fleet.hardware, fleet.engines.get(engine)
    if entry is None or entry.cpu_features is None or hardware.cpu is None:
        return hardware
    used = tuple(f for f in hardware.cpu.features if f in entry.cpu_features)
    return msgspec.structs.replace(hardware, cpu=msgspec.structs.replace(hardware.cpu, features=used))


def _tier(fleet: FleetConfig, name: str, config: ServerConfig) -> str:
    """The server's tier; one named by include_warm joins the first tier that starts at boot."""
    if name in fleet.include_warm and fleet.tiers[config.tier].start == "demand":
        return next((t for t, tier in fleet.tiers.items() if tier.start == "boot"), config.tier)
    return config.tier


def _server_plan(
    name: str, config: ServerConfig, model: ModelFile, beside: Companions, *, settings: Settings, port: int, tier: str
) -> ServerPlan:
    """The settled values in the shape that render and plan --json read; memory is added up later."""
    arch = model.architecture
    copied = {field: getattr(config, field) for field in COPIED}
    resolved = {field: getattr(settings, field) for field in RESOLVED}
    return ServerPlan(
        name=name,
        tier=tier,
        port=port,
        model_path=model.path,
        file_parts=tuple(part.path for part in model.parts),
        arch=arch.arch,
        source=model.source,
        n_ctx_train=arch.n_ctx_train,
        flash_attention="on" if settings.flash_attention else "off",
        projector_path=beside.projector.path if beside.projector else None,
        expert_override=(f"{arch.arch}.expert_used_count", config.experts_used) if config.experts_used else None,
        draft_path=beside.draft.path if beside.draft else None,
        draft_arch=beside.draft.architecture.arch if beside.draft else None,
        memory=(),
        **copied,
        **resolved,
    )


COPIED = (
    *("roles", "aliases", "engine", "host", "model", "quantization", "pooling", "cpus", "numa", "draft", "exclusive"),
    *("default", "after", "start_timeout_s", "stall_timeout_s", "request_timeout_s", "stop_grace_s", "fatal"),
    *("reasoning", "request_defaults", "request_set", "request_strip", "extra_args", "env", "slot_save_path"),
)
"""ServerPlan fields that are the config's own."""
RESOLVED = (
    *("slots", "n_ctx", "n_ctx_per_slot", "kv_unified", "n_batch", "n_ubatch", "cache_type_k", "cache_type_v"),
    *("swa_full", "context_checkpoints", "cache_ram_mib", "embedding", "load_mode", "repack", "devices"),
    *("n_gpu_layers", "n_cpu_moe", "tensor_split", "kv_offload", "threads", "threads_batch", "ngram"),
)
"""ServerPlan fields that settling decided."""


def _dangling(key: str, message: str) -> Finding:
    """A reference to nothing: the config and catalog stages report these first, with the nearest name."""
    return Finding(code="plan/dangling-reference", severity="error", key=key, message=message)
