"""The `orchestration` group: deciding, validating, the warm pool. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from launcher.ir.config.values import ByteSize, KvType, Limit, NotNegative, NotNegativeNumber, Positive, Seconds, Share

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
