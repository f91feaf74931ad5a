"""What will run and what it takes. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from launcher.errors import Finding
from launcher.ir.catalog import ModelFile, ProjectorFile
from launcher.ir.config import (
    FleetConfig,
    KvType,
    LoadMode,
    LoraConfig,
    NgramConfig,
    ServerConfig,
    ServiceConfig,
    SplitMode,
    Start,
)
from launcher.ir.measured import Proved, ServerSpeed

RAM = "ram"
"""Name of the host's memory among the devices."""
START_RANK: dict[Start, int] = {"boot": 0, "demand": 1, "never": 2}
"""Who comes first by when it starts: it is asked rather, and owns the pages of a file that others map, too."""


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
    servers: dict[str, int] = {}
    """`planned_bytes` by server; the rest is the services'."""


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


Component = Literal["model", "kv", "recurrent", "output", "compute", "draft", "projector", "overhead"]
"""The components of `DeviceMemory`."""


class Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A piece of a server's memory, before pieces are added up: bytes of one component on one device.

    `committed` at load; `later` = on top of it at full load; `growth` optional; `file` = file-backed pages of
    the model file `source`; `locked` = of committed and file, mlocked by this process; `transient` = needed
    once, while loading.
    """

    device: str
    component: Component
    committed: int = 0
    later: int = 0
    growth: int = 0
    file: int = 0
    locked: int = 0
    transient: int = 0
    source: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server's choices, all made. Contexts in tokens after llama.cpp's padding.

    `n_ctx_seq` is what the KV cache holds for one sequence (the whole `n_ctx` when unified); `n_ctx_per_slot` is
    what a request may use (capped at the training context). `tensor_split` has one share a device, summing to 1.
    `host_buffer`: a device's backend has its own host buffers, which displace repacked CPU weights.
    """

    slots: int
    n_ctx: int
    n_ctx_seq: int
    n_ctx_per_slot: int
    kv_unified: bool
    n_batch: int
    n_ubatch: int
    causal: bool
    embedding: bool
    flash_attention: bool
    cache_type_k: KvType
    cache_type_v: KvType
    swa_full: bool
    context_checkpoints: int
    cache_ram_mib: int
    load_mode: LoadMode
    repack: bool
    n_expert_used: int
    devices: tuple[str, ...] = ()
    n_gpu_layers: int = 0
    n_cpu_moe: int
    tensor_split: tuple[float, ...] = ()
    kv_offload: bool
    host_buffer: bool = False
    cpu_features: frozenset[str] = frozenset()
    threads: int
    threads_batch: int
    draft_n_max: int
    """Tokens drafted ahead by a draft; 0 = no draft."""
    ngram: NgramConfig | None
    contexts: tuple[tuple[str, int], ...] = ()
    """Devices that the process uses, the draft's too, and bytes that it holds of each before it loads anything."""
    plain_devices: bool = False
    """Every device allocates as the CPU does (RPC)."""
    cache_blocks: tuple[tuple[str, int, int], ...] = ()
    """K/V types that only this engine has: name, bytes of a block, values in it."""
    pooling: str = "none"
    """How an embedding server makes one vector of a text's tokens."""
    split_mode: SplitMode = "layer"
    main: str = ""
    """The device that has what is not split."""
    n_cpu_ffn: int = 0
    placement: tuple[tuple[str, str], ...] = ()
    """Regular expression → device, for tensors that go elsewhere than their layer."""
    projector_device: str | None = None
    draft_kind: str = ""
    """How they are drafted; "" = no draft."""
    build: int = 0
    """Number of the llama-server build; 0 = not known."""

    @property
    def streams(self) -> int:
        """KV streams: one when unified, else one a slot."""
        return 1 if self.kv_unified else self.slots


class ServerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server: what was written, what that comes to, the files that it opens, and what the plan decides.

    What both `config` and `settings` have is resolved in `settings`: nothing is left to the binary's defaults. What
    the plan may decide otherwise than was written (`tier`, `port`, `default`, `after`, `start_timeout_s`, `lora`)
    stands here. Spelling is render's work.
    """

    name: str
    config: ServerConfig
    """As written; of several hosts, `host` is the address that it listens on."""
    settings: Settings
    model: ModelFile
    draft: ModelFile | None = None
    projector: ProjectorFile | None = None
    lora: tuple[LoraConfig, ...] = ()
    """With the paths that are opened."""
    tier: str
    starts: Start
    """When its tier runs it."""
    initial: bool
    """It is up after start; of an exclusive group only one is."""
    port: int
    default: bool = False
    after: tuple[str, ...] = ()
    start_timeout_s: float
    load_s: float | None = None
    """Seconds that reading its files takes, where it is stated how fast they are read."""
    cooldown_s: float = 0
    """Pause before its start, after that of another large model."""
    on: str = ""
    """The host that it runs on, where there are several."""
    parts: tuple[Part, ...] = ()
    """What this process takes alone, nothing shared."""
    memory: tuple[DeviceMemory, ...] = ()
    proved: Proved | None = None
    """What its own binary's dry run said, which `memory` was held against; None: it is the bound alone."""

    @property
    def key(self) -> str:
        """Dotted config key."""
        return f"servers.{self.name}"

    @property
    def entry(self) -> str:
        """The model's entry and quantization, for people."""
        return f"{self.config.model} {self.config.quantization}"

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call it: its name, its roles, its aliases."""
        return (self.name, *self.config.roles, *self.config.aliases)

    def takes(self, device: str) -> DeviceMemory:
        """What it takes on `device`, sharing considered."""
        return next((m for m in self.memory if m.device == device), DeviceMemory(device=device))

    @property
    def pooling(self) -> str | None:
        """What `--pooling` must say: as written, or `rank` where the model orders texts; None: the model's own."""
        ranks = self.settings.embedding and self.model.architecture.pooling == "rank"
        return self.config.pooling or ("rank" if ranks else None)

    @property
    def draft_path(self) -> str | None:
        """The file of its draft model."""
        return self.draft.path if self.draft else None

    @property
    def projector_path(self) -> str | None:
        """The file of its projector."""
        return self.projector.path if self.projector else None

    @property
    def modalities(self) -> tuple[str, ...]:
        """What requests may contain."""
        return ("text", *(self.projector.modalities if self.projector else ()))


class RungPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One rung of a worker's ladder: what it sets (for people), and the whole server as it would run there."""

    label: str
    server: ServerPlan


class ServicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A service with its port and address settled. `on`: the host that it runs on, where there are several."""

    name: str
    port: int
    config: ServiceConfig
    starts: Start = "boot"
    """When its tier runs it; one of a tier that is unknown counts as always on."""
    on: str = ""


class ResidentSet(msgspec.Struct, frozen=True, kw_only=True):
    """Servers and services that may be up at once, beside those that always are, and into which no further one fits.

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
    speeds: tuple[ServerSpeed, ...] = ()
    """What is expected by the rates in the hardware file alone: the same on every machine."""
