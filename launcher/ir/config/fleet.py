"""One fleet as composed, with the groups `routing` and `orchestration`, and where each value was written. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from launcher.errors import Location
from launcher.ir.config.resources import (
    ByteSize,
    GpuConfig,
    HardwareConfig,
    KvType,
    Limit,
    ModelConfig,
    NotNegative,
    NotNegativeNumber,
    Port,
    Positive,
    QuantizationConfig,
    Seconds,
    Share,
)
from launcher.ir.config.runtime import DeployConfig, HookConfig, RuntimeConfig, ServiceConfig, UpstreamConfig
from launcher.ir.config.servers import EngineConfig, ServerConfig, TierConfig

ValidationPolicy = Literal["none", "final", "block_by_block"]


class ValidationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generate, validate, commit: which server judges, and how often a block may be corrected."""

    validator: str
    policy: ValidationPolicy = "block_by_block"
    """Where neither the request, nor its model, nor its domain, nor the router says another."""
    max_corrections: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    system_prompt: str = ""
    timeout_s: Limit = 60
    """For one verdict, waiting included."""
    block_tokens: Positive = 512
    """Longest block."""
    max_blocks: Positive = 32
    """Most blocks of one answer."""
    shed_above: NotNegative = 8
    """While so many answers are being validated, one more is only where the request or its model names a policy: a
    fleet with too much to do gets no more of it. 0 = always."""
    block_prompt: str = ""
    """What a worker is told about blocks, after its own prompt; empty: the built-in text."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model: auto` without asking the router: the last user message has one of `words`."""

    words: tuple[str, ...]
    """Whole words or phrases; letter case does not matter."""
    domain: str
    model: str | None = None
    """Absent: the first worker of the pool that serves the task type `domain`."""
    policy: ValidationPolicy | None = None


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of projects."""

    retention_days: NotNegativeNumber = 30
    """Finished work, notes and journal older than this are dropped; 0 = never."""
    context_blocks: NotNegative = 16
    """Latest blocks of a project that a worker may be shown, as far as its slot has room."""
    commits: Literal["validated", "projects"] = "validated"
    """Which answers are kept: those that were validated, or also those that were not, of requests with `X-Project`."""


class WarmPoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model files kept resident in RAM so that a swap reads memory, not disk."""

    models_min: NotNegative = 2
    models_max: NotNegative = 3
    ram_bytes: ByteSize = 0
    predict: dict[str, str] = {}
    """Domain → server likely to be needed next."""
    patterns: tuple[tuple[str, ...], ...] = ()
    """Sequences of servers: when all but the last just ran, the last is likely next."""


class RungConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rung of the ladder taken after out-of-memory. Absent fields stay as planned."""

    server: str | None = None
    quantization: str | None = None
    n_ctx: Positive | None = None
    cache_type_k: KvType | None = None
    cache_type_v: KvType | None = None
    n_gpu_layers: NotNegative | None = None


class OrchestrationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first seed document's engine: a router, a validator, one worker at a time."""

    router: str
    workers: tuple[str, ...] = ()
    router_timeout_s: Limit = 10
    validation: ValidationConfig | None = None
    prompts: dict[str, str] = {}
    """System prompt by server."""
    policies: dict[str, ValidationPolicy] = {}
    """Validation policy by domain."""
    model_policies: dict[str, ValidationPolicy] = {}
    """Validation policy by server, also for requests that name it themselves."""
    rules: tuple[RuleConfig, ...] = ()
    """Tried in order before the router is asked."""
    confidence_min: Share = 0
    """Below this the router's decision is not taken, and the default server answers."""
    memory: MemoryConfig = MemoryConfig()
    warm_pool: WarmPoolConfig | None = None
    oom_ladder: tuple[RungConfig, ...] = ()
    swap_target_s: Seconds | None = None
    """A swap should take at most so long, from the drain until the other serves. Watched: status, metrics, alerts."""
    tokens_per_second_min: NotNegativeNumber | None = None
    """Every worker should generate at least so fast, unless it says itself how fast. Watched, too."""
    first_token_max_s: Seconds | None = None
    """Streamed answers of every worker should begin within so long, waiting included, unless it says itself. Watched,
    too."""


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers that take the same kinds of task, in order of preference; later ones join on expansion."""

    servers: tuple[str, ...]
    task_types: tuple[str, ...] = ()


class BreakerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Circuit breaker of an upstream."""

    failures: Positive = 3
    open_s: Seconds = 30
    open_max_s: Seconds = 300


class EscalationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To a stronger role when an answer is not good enough (a server that is down is its fallback's)."""

    chain: dict[str, str] = {}
    max_retries: NotNegative = 2
    """How often the validator refuses a worker's block before the next of the chain writes it, at least once."""
    max_escalations: NotNegative = 2
    """How often one answer may go on to the next of the chain."""


class SlotsMaxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests a role's server may answer at once, and what was measured with more."""

    slots: Positive
    reason: str


class KindsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers a request of a kind that names no model. Absent: the first server that does it, if there is one."""

    embedding: str | None = None
    rerank: str | None = None
    infill: str | None = None
    """Absent: as any text. Name a model that was trained to fill in."""
    audio: str | None = None
    """Transcriptions and translations."""


class MediaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers a chat with images (audio) whose own server takes none. Absent: it is refused, with the reason."""

    image: str | None = None
    audio: str | None = None


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers what. Names in values are servers, roles or aliases."""

    default: str | None = None
    """Answers when a request names no model."""
    defaults: KindsConfig = KindsConfig()
    media: MediaConfig = MediaConfig()
    unknown_model: Literal["refuse", "default"] = "refuse"
    """A model that nobody has: 404 with the nearest names; or as if none were named, for clients that were made for one
    llama-server, which ignores the name."""
    pools: dict[str, PoolConfig] = {}
    fallback: dict[str, tuple[str, ...]] = {}
    escalation: EscalationConfig = EscalationConfig()
    breaker: BreakerConfig = BreakerConfig()
    timeouts_s: dict[str, Limit] = {}
    """How long a server may say nothing, by role, over its own request_timeout_s."""
    n_ctx_min: dict[str, int] = {}
    """Tokens that a slot must have, by role."""
    slots_max: dict[str, SlotsMaxConfig] = {}
    """The most slots that the server of a role may have; 1: it is serial."""


class ProfileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the fleet a deployment runs."""

    name: str
    description: str = ""


class StatedTotals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures that documents state; the plan says where the computed ones differ. Never used otherwise."""

    hot_ram_bytes: ByteSize | None = None
    kv_reserve_bytes: ByteSize | None = None
    servers: int | None = None
    services: int | None = None
    source: str = ""


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole composed config."""

    hardware: HardwareConfig
    profile: ProfileConfig
    models: dict[str, ModelConfig]
    quantizations: dict[str, QuantizationConfig]
    tiers: dict[str, TierConfig]
    engines: dict[str, EngineConfig]
    ports: dict[str, Port] = {}
    servers: dict[str, ServerConfig] = {}
    services: dict[str, ServiceConfig] = {}
    upstreams: dict[str, UpstreamConfig] = {}
    hooks: dict[str, HookConfig] = {}
    routing: RoutingConfig = RoutingConfig()
    orchestration: OrchestrationConfig | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    deploy: DeployConfig = DeployConfig()
    include_warm: tuple[str, ...] = ()
    stated: StatedTotals | None = None
    waive: tuple[str | dict[str, str], ...] = ()

    def gpus(self, host: str) -> dict[str, GpuConfig]:
        """GPUs of the machine that an entry's `host` means."""
        return self.hardware.machine(self.hardware.whose(host, self.runtime.front.host)).gpus

    def wanted(self, server: str, field: Literal["tokens_per_second_min", "first_token_max_s"]) -> float | None:
        """A target of a server: its own, else its orchestration's where it is a worker; None: there is none, or 0."""
        own: float | None = getattr(self.servers[server], field)
        cycle = self.orchestration
        if own is None and cycle is not None and server in cycle.workers:
            own = getattr(cycle, field)
        return own or None


class SourceMap(msgspec.Struct, frozen=True, kw_only=True):
    """Where each dotted key of the composed config was written. List items are `key.0`."""

    locations: dict[str, Location]

    def find(self, key: str) -> Location | None:
        """Location of `key`, or of its nearest written ancestor."""
        while key:
            if key in self.locations:
                return self.locations[key]
            key = key.rpartition(".")[0]
        return None


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the config stage: the typed config, where each value came from, and the plain tree."""

    fleet: FleetConfig
    sources: SourceMap
    tree: dict[str, Any]
    findings: tuple[Any, ...] = ()
