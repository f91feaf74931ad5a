"""Events of a fleet, as shown by `launch events`, the event stream and the page. Pure types."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal[
    "runtime",
    "starting",
    "slow",
    "adopted",
    "ready",
    "failed",
    "degraded",
    "restored",
    "swap",
    "room",
    "target",
    "slots",
    "stopping",
    "stopped",
    "evicted",
    "expansion",
    "preload",
    "dropped",
    "pinned",
    "unpinned",
    "prediction",
    "hook",
    "state",
    "fleet",
    "reload",
    "decision",
    "verdict",
    "correction",
    "block",
    "generation",
]
ORCHESTRATION: frozenset[Kind] = frozenset({"decision", "verdict", "correction", "block", "generation"})
"""Kinds of events that come with requests. They are stored apart, so that many requests never push out the fleet's own
events. They have figures and names; texts are in the project memory only."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `id` grows with every event, over restarts of the runtime too."""

    id: int
    at: float
    """Unix time."""
    kind: Kind
    name: str = ""
    """The server, service or hook; "" for the fleet."""
    message: str
    """What happened, in one line."""
    cause: str = ""
    """Its cause, if known."""
    details: dict[str, Any] = {}
    """Figures and other details, by name."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """A Record without number and time; the fields are those of Record."""

    kind: Kind
    name: str = ""
    message: str
    cause: str = ""
    details: dict[str, Any] = {}


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """`launch events --json`, oldest first. `schema` is `launch.events/v1`."""

    schema: str = "launch.events/v1"
    deployment: str
    events: tuple[Record, ...]
