"""Events of the runtime, for live progress and for the pipe of `--detach`. Pure."""

from __future__ import annotations

import msgspec

from launcher.errors import Finding


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str):
    """Base of all events; encoded as JSON with the class name in `event`."""


class RuntimeStarted(Event, frozen=True, kw_only=True):
    """The runtime holds the deployment's lock. `front`: URL at which the front will answer, if there is one."""

    deployment: str
    pid: int
    state_dir: str
    front: str | None
    processes: tuple[str, ...]
    """Names of the processes that are started at boot, in order."""


class ServerStarting(Event, frozen=True, kw_only=True):
    """A process was spawned. `restart` counts from 0."""

    name: str
    pid: int
    port: int
    log_file: str
    restart: int = 0
    socket: str = ""
    """Path of the unix socket on which it listens, in place of a port (then `port` is 0)."""


class ServerAdopted(Event, frozen=True, kw_only=True):
    """A process of an earlier runtime that runs as compiled was taken over."""

    name: str
    pid: int
    by_hand: bool = False
    """It was started outside of this runtime while that ran (`systemctl start`)."""


class ServerSlow(Event, frozen=True, kw_only=True):
    """The process still starts after its `start_timeout_s`, and is not ended because it makes progress.

    `expected_s`: seconds to load, estimated from the size of the model and the speed of the medium; None: unknown.
    """

    name: str
    seconds: float
    expected_s: float | None = None


class ServerReady(Event, frozen=True, kw_only=True):
    """The process was proven ready, `seconds` after the spawn."""

    name: str
    pid: int
    seconds: float


class ServerFailed(Event, frozen=True, kw_only=True):
    """The process ended, or never became ready.

    `code` is a finding's code. `final`: it is not restarted; otherwise it is, after `retry_s` seconds.
    """

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
    """The server is run at another fallback level, `rung` (`1/4: q3_k_m`); "": as planned again. `why`: the cause."""

    name: str
    rung: str
    why: str
    by_hand: bool = False
    """An operator asked for it; no memory ran out."""


class Swapped(Event, frozen=True, kw_only=True):
    """`name` serves in place of `instead_of`, `seconds` after those stopped taking requests."""

    name: str
    instead_of: tuple[str, ...]
    seconds: float


class RoomMade(Event, frozen=True, kw_only=True):
    """The servers `going` are stopped so that `name` fits, which needs `needs` bytes by device.

    `weighed`, for each of `going`: seconds since its last use (`idle_s`), seconds to load it again (`reload_s`), and
    the second divided by the first (`score`); the lowest score is stopped first.
    """

    name: str
    going: tuple[str, ...]
    needs: dict[str, int]
    weighed: dict[str, dict[str, float]]


class SlotsRestored(Event, frozen=True, kw_only=True):
    """A server that was swapped back restored `tokens` tokens in `slots` slots, saved when it was swapped out."""

    name: str
    slots: int
    tokens: int


class ServerStopping(Event, frozen=True, kw_only=True):
    """SIGTERM was sent. `why`: stop, idle, unloaded, evicted, exclusive, changed, restore, by_hand."""

    name: str
    why: str


class ServerStopped(Event, frozen=True, kw_only=True):
    """The process has ended, as asked."""

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
    """The start was given up, and all processes are stopped. `exit_code` is the runtime's."""

    exit_code: int
    findings: tuple[Finding, ...]


class FleetReloaded(Event, frozen=True, kw_only=True):
    """A reload is complete: names by what it did to them."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    kept: tuple[str, ...]


class Stopping(Event, frozen=True, kw_only=True):
    """The runtime stops everything. `reason`: a signal's name, `control`, or `a fatal failure`."""

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
    """One event as a line of JSON."""
    return msgspec.json.encode(event) + b"\n"


def decode_event(line: bytes) -> AnyEvent:
    """The event of one line. Raises msgspec.DecodeError."""
    event: AnyEvent = msgspec.json.decode(line, type=AnyEvent)
    return event
