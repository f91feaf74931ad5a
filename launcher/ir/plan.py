"""What will run and what it takes. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from launcher.errors import Finding
from launcher.ir.config import (
    DraftConfig,
    FlashAttention,
    FleetConfig,
    KvType,
    LoadMode,
    NgramConfig,
    NumaConfig,
    ServiceConfig,
    TierConfig,
)


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What one server takes on one device, in bytes. Field names are CONTRACT's.

    `committed` = cannot be reclaimed, at load; `peak` = with full slots and checkpoints; `growth` = optional
    (prompt cache); `file` = file-backed pages, reclaimable, needed for speed; `locked` = of all, mlocked.
    model_bytes + kv + recurrent + output + compute + draft + projector + overhead = committed + file.
    """

    device: str
    model_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    output_bytes: int = 0
    compute_bytes: int = 0
    draft_bytes: int = 0
    projector_bytes: int = 0
    overhead_bytes: int = 0
    committed_bytes: int = 0
    peak_bytes: int = 0
    growth_bytes: int = 0
    file_bytes: int = 0
    locked_bytes: int = 0
    shared_with: tuple[str, ...] = ()
    """Servers that map the same file, where the load mode shares its pages; counted once, at the first by name."""

    @property
    def planned_bytes(self) -> int:
        """Resident after start: committed plus file-backed."""
        return self.committed_bytes + self.file_bytes

    @property
    def resident_peak_bytes(self) -> int:
        """The most that is resident without the optional growth: peak plus file-backed."""
        return self.peak_bytes + self.file_bytes


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node's share: after start, in the worst set that the tiers allow, and what of that is locked."""

    id: int
    capacity_bytes: int
    planned_bytes: int
    peak_bytes: int = 0
    locked_bytes: int = 0


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One memory: capacity, what may be planned, the HOT set, and the worst set that the tiers allow."""

    name: str
    kind: Literal["ram", "gpu"]
    capacity_bytes: int
    budget_bytes: int
    planned_bytes: int
    peak_bytes: int
    nodes: tuple[NodePlan, ...] = ()
    host: str | msgspec.UnsetType = msgspec.UNSET
    """Whose it is, where there are several hosts."""


class ServerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server with every choice made: nothing here is left to the binary's defaults.

    Contexts are in tokens after llama.cpp's padding. `n_gpu_layers` is a number. Spelling is render's work.
    """

    name: str
    roles: tuple[str, ...]
    aliases: tuple[str, ...]
    tier: str
    engine: str
    host: str
    port: int
    model: str
    quantization: str
    model_path: str
    file_parts: tuple[str, ...]
    arch: str
    source: Literal["gguf", "declared", "measured"]
    slots: int
    n_ctx: int
    n_ctx_per_slot: int
    n_ctx_train: int
    kv_unified: bool
    n_batch: int
    n_ubatch: int
    flash_attention: FlashAttention
    cache_type_k: KvType
    cache_type_v: KvType
    swa_full: bool
    context_checkpoints: int
    cache_ram_mib: int
    embedding: bool
    pooling: str | None
    load_mode: LoadMode
    repack: bool
    projector_path: str | None
    expert_override: tuple[str, int] | None
    """`(architecture.expert_used_count, n)` for --override-kv."""
    devices: tuple[str, ...]
    n_gpu_layers: int
    n_cpu_moe: int
    tensor_split: tuple[float, ...]
    kv_offload: bool
    threads: int
    threads_batch: int
    cpus: str | None
    numa: NumaConfig | None
    draft: DraftConfig | None
    draft_path: str | None
    ngram: NgramConfig | None
    exclusive: str | None
    default: bool
    after: tuple[str, ...]
    start_timeout_s: float
    stall_timeout_s: float
    request_timeout_s: float
    stop_grace_s: float
    fatal: bool
    reasoning: str
    request_defaults: dict[str, Any]
    extra_args: tuple[str, ...]
    env: dict[str, str]
    memory: tuple[DeviceMemory, ...]
    request_set: dict[str, Any] = {}
    request_strip: tuple[str, ...] = ()
    draft_arch: str | None = None
    slot_save_path: str | None = None
    on: str = ""
    """The host that it runs on, where there are several; `host` is the address that it listens on."""
    proven_by: str = ""
    """The build whose own dry run `memory` was held against (`b11434`); "" = it is the bound alone."""


class RungPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One rung of a worker's ladder: what it sets (for people), and the whole server as it would run there."""

    label: str
    server: ServerPlan


class ServicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A service with its port and address settled. `on`: the host that it runs on, where there are several."""

    name: str
    port: int
    config: ServiceConfig
    on: str = ""


class ResidentSet(msgspec.Struct, frozen=True, kw_only=True):
    """Servers that may be up at once, beside those that always are, and into which no further one fits.

    `bytes`: what is then taken by device, at peak, everything counted. `allowed` False: the sizes would allow it, an
    exclusive group does not.
    """

    servers: tuple[str, ...]
    bytes: dict[str, int]
    allowed: bool


class Residency(msgspec.Struct, frozen=True, kw_only=True):
    """Co-residency of one host: who is always up, and every whole set of those that come and go.

    `never`: who does not even fit beside those that are always up. `complete` False: there are more sets than listed.
    """

    always: tuple[str, ...]
    sets: tuple[ResidentSet, ...]
    never: tuple[str, ...] = ()
    complete: bool = True
    host: str | msgspec.UnsetType = msgspec.UNSET


class Solved(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan chose for a server that left something open.

    `chosen`: field → value. `beyond`: why no better value was chosen, one sentence a field; a field at its best has
    none. `fits` False: not even the least that will do fits, and that was taken. `complete` False: servers share three
    devices or more, and not every combination was weighed.
    """

    server: str
    chosen: dict[str, Any]
    beyond: tuple[str, ...]
    fits: bool
    complete: bool = True


class PlanTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the fleet, computed, never typed. `hot_ram_bytes` and `warm_ram_bytes` are planned RAM."""

    hot_ram_bytes: int
    warm_ram_bytes: int
    kv_bytes: int
    threads: int


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole decision: servers in start order, services, devices, totals, and findings that do not stop it.

    Of several hosts, or of one of them (`launcher.plan.plan_of_host`): then `on` names it, `front` says whether the
    front runs there, and `remote` are the servers of other hosts that this front asks.
    """

    deployment: str
    input_digest: str
    config: FleetConfig
    tiers: dict[str, TierConfig]
    devices: tuple[DevicePlan, ...]
    servers: tuple[ServerPlan, ...]
    services: tuple[ServicePlan, ...]
    totals: PlanTotals
    findings: tuple[Finding, ...]
    ladders: dict[str, tuple[RungPlan, ...]] = {}
    """Worker → what it is started as after out-of-memory, one rung after another."""
    on: str = ""
    front: bool = True
    remote: tuple[ServerPlan, ...] = ()
    solved: tuple[Solved, ...] = ()
    residency: tuple[Residency, ...] = ()
    """One table a host where servers come and go."""
