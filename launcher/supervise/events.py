"""What the runtime tells whoever started it, as values: for live progress and for the pipe of `--detach`. Pure."""

from __future__ import annotations

import msgspec

from launcher.errors import Finding


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str):
    """Base of all events; encoded as JSON with the class name in `event`."""


class RuntimeStarted(Event, frozen=True, kw_only=True):
    """The lock is held and the state directory is ours. `front` is the URL that will answer, if any."""

    deployment: str
    pid: int
    state_dir: str
    front: str | None
    processes: tuple[str, ...]
    """Names that are started at boot, in order."""


class ServerStarting(Event, frozen=True, kw_only=True):
    """A process was spawned. `restart` counts from 0."""

    name: str
    pid: int
    port: int
    log_file: str
    restart: int = 0
    socket: str = ""
    """Path of the unix socket on which it listens, where that is no port (0)."""


class ServerAdopted(Event, frozen=True, kw_only=True):
    """A process that an earlier runtime had started, and that is as compiled, was taken over."""

    name: str
    pid: int
    by_hand: bool = False
    """Somebody started it behind the runtime."""


class ServerSlow(Event, frozen=True, kw_only=True):
    """It still starts after its `start_timeout_s`, and is left alone because it gets on. `expected_s`: reading it."""

    name: str
    seconds: float
    expected_s: float | None = None


class ServerReady(Event, frozen=True, kw_only=True):
    """Readiness was proven, `seconds` after the spawn."""

    name: str
    pid: int
    seconds: float


class ServerFailed(Event, frozen=True, kw_only=True):
    """It ended, or never became ready. `final`: it is not tried again; `retry_s` else. `code` is a finding's code."""

    name: str
    code: str
    cause: str
    remedy: str = ""
    exit_code: int | None = None
    tail: tuple[str, ...] = ()
    fatal: bool = False
    final: bool = True
    retry_s: float | None = None


class RungTaken(Event, frozen=True, kw_only=True):
    """Out of memory: it is started by another fallback, `rung` (`1/4: q3_k_m`); "" = restored, as planned."""

    name: str
    rung: str
    why: str
    by_hand: bool = False
    """Somebody asked for it: nothing ran out of memory."""


class Swapped(Event, frozen=True, kw_only=True):
    """`name` serves in place of `instead_of`, `seconds` after these took no more requests."""

    name: str
    instead_of: tuple[str, ...]
    seconds: float


class RoomMade(Event, frozen=True, kw_only=True):
    """`going` are stopped so that `name` fits, which needs so many bytes by device; what was weighed of each.

    `weighed`: seconds since it was last used, seconds to have it back, and the second by the first: the least goes.
    """

    name: str
    going: tuple[str, ...]
    needs: dict[str, int]
    weighed: dict[str, dict[str, float]]


class SlotsRestored(Event, frozen=True, kw_only=True):
    """A server that was swapped back confirmed `tokens` of the `slots` that were saved when it was swapped out."""

    name: str
    slots: int
    tokens: int


class ServerStopping(Event, frozen=True, kw_only=True):
    """SIGTERM was sent. `why`: stop, idle, unloaded, evicted, exclusive, changed, unhealthy, by_hand."""

    name: str
    why: str


class ServerStopped(Event, frozen=True, kw_only=True):
    """Its process is gone, as asked."""

    name: str


class HookDone(Event, frozen=True, kw_only=True):
    """A hook ran; `error` is None when it succeeded."""

    name: str
    seconds: float
    error: str | None = None


class StateIgnored(Event, frozen=True, kw_only=True):
    """A state file was not trusted (torn, foreign, or its process is another one); nothing was signalled."""

    path: str
    reason: str


class FleetReady(Event, frozen=True, kw_only=True):
    """Every boot process is ready, or has failed without being fatal (`failed`)."""

    seconds: float
    front: str | None
    ready: tuple[str, ...]
    failed: tuple[str, ...] = ()


class FleetFailed(Event, frozen=True, kw_only=True):
    """The start was given up, and everything that was started is stopped. `exit_code` is the process's."""

    exit_code: int
    findings: tuple[Finding, ...]


class FleetReloaded(Event, frozen=True, kw_only=True):
    """Another manifest was taken over."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    kept: tuple[str, ...]


class Stopping(Event, frozen=True, kw_only=True):
    """The runtime winds down. `reason` is a signal's name or `control`."""

    reason: str


class Stopped(Event, frozen=True, kw_only=True):
    """Every process is gone; the runtime ends."""


AnyEvent = (
    RuntimeStarted
    | ServerStarting
    | ServerSlow
    | ServerAdopted
    | ServerReady
    | ServerFailed
    | RungTaken
    | Swapped
    | RoomMade
    | SlotsRestored
    | ServerStopping
    | ServerStopped
    | HookDone
    | StateIgnored
    | FleetReady
    | FleetFailed
    | FleetReloaded
    | Stopping
    | Stopped
)


def encode_event(event: Event) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(event) + b"\n"


def decode_event(line: bytes) -> AnyEvent:
    """The event of one line. Raises msgspec.DecodeError."""
    event: AnyEvent = msgspec.json.decode(line, type=AnyEvent)
    return event
