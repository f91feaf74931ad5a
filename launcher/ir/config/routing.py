"""The `routing` group: who is asked for what. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.ir.config.values import Limit, NotNegative, Positive, Seconds


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
