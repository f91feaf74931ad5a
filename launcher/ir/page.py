"""Data shown by the page at `/ui` and its event stream, as types with published schemas. Pure types."""

from __future__ import annotations

import msgspec

from launcher.ir.events import EventList, Record
from launcher.ir.live import FleetStatus, ProcessStatus


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Seconds count from its arrival; unknown values are None or 0."""

    number: int = 0
    """Increases with every request that ended; 0: it has not."""
    id: str
    at: float
    """Unix time of its arrival."""
    client: str
    """The name of the caller's key, else the client's address."""
    path: str
    asked: str
    """The model name that it asked for."""
    server: str
    state: str
    """`waiting`, `running`, `streaming`, `done`, `failed`, `left`."""
    status: int = 0
    code: str = ""
    """Code of an error of the front; "" for none."""
    seconds: float
    first_s: float | None = None
    """Seconds until the first part of the answer."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    """As the answer reported; while it streams, the number of parts so far."""
    tokens_per_second: float | None = None
    decision: str = ""
    """Why an orchestrator chose its server."""


class RequestList(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that run or wait `now`, and those that `ended`, oldest first."""

    now: tuple[Request, ...]
    ended: tuple[Request, ...]


class StreamDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`GET /v1/launch/events` as a stream: one property per `event:`, whose value is the JSON of its `data:`.

    Each message of the stream has one of them. `schema` is `launch.stream/v1`; it is not sent.
    """

    schema: str = "launch.stream/v1"
    event: Record | msgspec.UnsetType = msgspec.UNSET
    """An event; its number is the message's `id`."""
    status: FleetStatus | msgspec.UnsetType = msgspec.UNSET
    """The whole fleet: sent first, and when the fleet itself changed."""
    processes: tuple[ProcessStatus, ...] | msgspec.UnsetType = msgspec.UNSET
    """The processes that changed."""
    requests: RequestList | msgspec.UnsetType = msgspec.UNSET
    """All that run or wait now, and those that ended since the last message."""


class EventLists(msgspec.Struct, frozen=True, kw_only=True):
    """`launch events --json`: the events of every fleet that is known here."""

    schema: str = "launch.event-lists/v1"
    fleets: tuple[EventList, ...]


class UiDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch ui --json`: a link that opens the page once."""

    schema: str = "launch.ui/v1"
    url: str
