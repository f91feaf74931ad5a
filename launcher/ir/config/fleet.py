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
    """Generate, validate, commit: the server that judges, and how often a block may be corrected."""

    validator: str
    policy: ValidationPolicy = "block_by_block"
    """Used where neither request, model, domain nor router names another."""
    max_corrections: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    system_prompt: str = ""
    timeout_s: Limit = 60
    """Timeout of one verdict, waiting included."""
    block_tokens: Positive = 512
    """Tokens of the longest block."""
    max_blocks: Positive = 32
    """Most blocks per answer."""
    shed_above: NotNegative = 8
    """While so many answers are being validated, further ones are validated only if the request or its model names a
    policy: a busy fleet takes on no more of it. 0 = always validate."""
    block_prompt: str = ""
    """Instructions about blocks for a worker, after its own prompt; empty: the built-in text."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model: auto` without asking the router: the last user message has one of `words`."""

    words: tuple[str, ...]
    """Whole words or phrases; letter case does not matter."""
    domain: str
    model: str | None = None
    """Absent: the first worker of the pool that serves the task type `domain`."""
    policy: ValidationPolicy | None = None


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the project memory keeps, and for how long."""

    retention_days: NotNegativeNumber = 30
    """Finished work, notes and journal older than this are dropped; 0 = never."""
    context_blocks: NotNegative = 16
    """Latest blocks of a project shown to a worker, as far as its slot has room."""
    commits: Literal["validated", "projects"] = "validated"
    """Answers that are kept: only validated ones, or also others, of requests with `X-Project`."""


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
    """Orchestration: a router, a validator, and one worker at a time."""

    router: str
    workers: tuple[str, ...] = ()
    router_timeout_s: Limit = 10
    validation: ValidationConfig | None = None
    prompts: dict[str, str] = {}
    """System prompt per server."""
    policies: dict[str, ValidationPolicy] = {}
    """Validation policy per domain."""
    model_policies: dict[str, ValidationPolicy] = {}
    """Validation policy per server, also for requests that name the server themselves."""
    rules: tuple[RuleConfig, ...] = ()
    """Tried in order before the router is asked."""
    confidence_min: Share = 0
    """Confidence of the router below which the default server answers instead."""
    memory: MemoryConfig = MemoryConfig()
    warm_pool: WarmPoolConfig | None = None
    oom_ladder: tuple[RungConfig, ...] = ()
    swap_target_s: Seconds | None = None
    """Longest wanted swap in seconds, from draining one server until the other serves. Watched in status, metrics and
    alerts."""
    tokens_per_second_min: NotNegativeNumber | None = None
    """Lowest wanted generation speed of every worker, unless the worker sets its own. Watched, too."""
    first_token_max_s: Seconds | None = None
    """Longest wanted time until a worker's streamed answer begins, waiting included, unless the worker sets its own.
    Watched, too."""


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
    """Escalation to a stronger role when an answer is not good enough (for a server that is down: `fallback`)."""

    chain: dict[str, str] = {}
    max_retries: NotNegative = 2
    """Refusals of a worker's block by the validator before the next of the chain writes it; at least 1."""
    max_escalations: NotNegative = 2
    """Most escalations per answer."""


class SlotsMaxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that a role's server may answer at once, and what was measured with more."""

    slots: Positive
    reason: str


class KindsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server for requests of each kind that name no model. Absent: the first that can answer it, if any."""

    embedding: str | None = None
    rerank: str | None = None
    infill: str | None = None
    """Absent: as for any text. Name a model that was trained to fill in."""
    audio: str | None = None
    """Transcriptions and translations."""


class MediaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server for chats with images (audio) whose own server accepts none. Absent: they are refused."""

    image: str | None = None
    audio: str | None = None


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which servers answer which requests. Names in values are servers, roles or aliases."""

    default: str | None = None
    """The server for requests that name no model."""
    defaults: KindsConfig = KindsConfig()
    media: MediaConfig = MediaConfig()
    unknown_model: Literal["refuse", "default"] = "refuse"
    """For a model name that no server has: 404 with the nearest names, or the default server, for clients made for a
    single llama-server, which ignores the name."""
    pools: dict[str, PoolConfig] = {}
    fallback: dict[str, tuple[str, ...]] = {}
    escalation: EscalationConfig = EscalationConfig()
    breaker: BreakerConfig = BreakerConfig()
    timeouts_s: dict[str, Limit] = {}
    """Longest silence of a server per role, instead of its own request_timeout_s."""
    n_ctx_min: dict[str, int] = {}
    """Tokens that a slot must have, per role."""
    slots_max: dict[str, SlotsMaxConfig] = {}
    """The most slots for the server of a role; 1: it answers one request at a time."""


class ProfileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the fleet a deployment runs."""

    name: str
    description: str = ""


class StatedTotals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Totals stated by documents, only compared with the computed ones."""

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
        """GPUs of the machine named by an entry's `host`."""
        return self.hardware.machine(self.hardware.whose(host, self.runtime.front.host)).gpus

    def wanted(self, server: str, field: Literal["tokens_per_second_min", "first_token_max_s"]) -> float | None:
        """A server's target: its own, else for a worker its orchestration's; None: none, or 0."""
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
