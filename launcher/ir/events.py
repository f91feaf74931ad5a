"""What happened to a fleet, as `launch events`, the stream of events and the page show it. Pure types."""

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
"""Kinds that come with requests. They are kept apart, so that no number of requests pushes out what happened to the
fleet. They have figures and names; the texts that they are about stand in the project memory alone."""


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
    """Why, where it is known."""
    details: dict[str, Any] = {}
    """The figures that decided, and what else is known, by name."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """A Record that has no number and no time yet; the fields are those of Record."""

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
