"""What is running now, as rooms of the runtime show it to each other. Pure types and protocols."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Protocol

import msgspec

Manager = Literal["runtime", "systemd", "systemd --user", "kubernetes", "slurm"]
"""Who owns the processes: our runtime, whose children they are, systemd, whose units it starts and stops, a cluster,
whose Deployments it scales, or Slurm, whose jobs it submits."""
ServerState = Literal["stopped", "starting", "ready", "sleeping", "stopping", "backoff", "failed"]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server or service as `launch status` shows it. Bytes measured are None where not known.

    `drift` names what differs between the running argv and the compiled one ("" = nothing).
    """

    name: str
    kind: Literal["server", "service"]
    state: ServerState
    port: int
    socket: str = ""
    """Path of the unix socket on which it listens, where that is no port (0)."""
    pid: int | None = None
    model: str = ""
    tier: str = ""
    roles: tuple[str, ...] = ()
    started_at: float | None = None
    """Unix time."""
    ready_s: float | None = None
    """Seconds from spawn to proven ready."""
    starting_s: float | None = None
    """While it starts: seconds since it began."""
    left_s: float | None = None
    """While it starts: how many more are likely, by what is loaded already, else by the medium's speed."""
    load_s: float | None = None
    """How long reading its files should take; None where the medium's speed is not known."""
    restarts: int = 0
    exit_code: int | None = None
    error: str | None = None
    log_file: str | None = None
    log_tail: tuple[str, ...] = ()
    planned_bytes: dict[str, int] = {}
    measured_bytes: dict[str, int] = {}
    """Resident RAM (shared pages count in full), and memory of GPUs where their driver tells it by process."""
    pss_bytes: int | None = None
    """RAM with each shared page divided among those that share it; None where it was not measured yet."""
    in_flight: int | None = 0
    """None: only the front knows, and cannot be asked."""
    slots: int = 0
    queued: int = 0
    """Requests that wait for a slot, or for the server to start."""
    tokens_per_second: float | None = None
    """Of the last answer that reported its speed, or could be timed."""
    first_token_s: float | None = None
    """Of the last answer that was streamed: seconds from its request to its first part."""
    breaker_s: float = 0
    """Seconds until the front asks it again after failures, unless it proves itself before; 0: it is asked."""
    drift: str = ""
    rung: str = ""
    """After out-of-memory: where it stands on its ladder (`1/4: q3_k_m`); "" = as planned."""
    in_ram_percent: float | None = None
    """How much of its files is in RAM, where the warm pool looks after them and it can be measured."""
    in_ram: str = ""
    """What the warm pool does with its files: `warm`, `locked`, `loading`, "" = nothing."""
    pinned: bool = False
    """Somebody pinned its files: they stay in RAM until they are unpinned, over restarts of the fleet."""


class HookStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A step after ready, in the order of the manifest, and what became of it."""

    name: str
    kind: Literal["http", "command", "python"]
    state: Literal["pending", "running", "done", "failed"]
    on_failure: Literal["fail", "warn"]
    seconds: float | None = None
    error: str | None = None
    finished_at: float | None = None
    """Unix time."""


class TargetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A target and what was last measured of it; None where nothing was yet. `server` empty: of the fleet."""

    name: str
    server: str
    limit: float
    measured: float | None = None
    met: bool | None = None


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole fleet: who runs it, and every process. `schema` is `launch.status/v1`.

    `drift` says where what is installed, loaded or running has drifted apart beyond single processes.
    """

    schema: str = "launch.status/v1"
    deployment: str
    input_digest: str
    runtime_pid: int | None
    """None: no runtime lives. 0: its lock is held by a process that the lock does not name."""
    front: str | None
    """URL of the front, None when no runtime serves it."""
    ready: bool
    """Every HOT server is ready."""
    processes: tuple[ProcessStatus, ...]
    hooks: tuple[HookStatus, ...] = ()
    manager: Manager = "runtime"
    drift: tuple[str, ...] = ()
    targets: tuple[TargetStatus, ...] = ()


class UnavailableError(Exception):
    """A server cannot take a request now. `retry_after_s` is what the client is told, if a retry may help."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        """`code` is stable (`server_failed`, `start_timeout`, `queue_full`)."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Lease(msgspec.Struct, eq=False):
    """A request's hold on a server, counted as in flight from the grant on: nothing evicts or swaps it out meanwhile.

    Who asks it to stop waits for the release, at most as long as a drain may take.
    """

    name: str
    end: Callable[[bool], None] | None = None
    """Called once, with `ok`, when the lease is released."""
    address: tuple[str, int] | None = None
    """Host and port (or path and 0) of the process; None: as the routes say. While a reload goes on the routes may name
    those of the next process already."""
    granted_at: float = 0.0
    """A time of the loop, where somebody may ask what has become of the server since."""

    def release(self, *, ok: bool) -> None:
        """The request has ended; `ok` False when the server failed it, or was never asked. A second call is void."""
        end, self.end = self.end, None
        if end is not None:
            end(ok)


class Upstreams(Protocol):
    """What the data plane may ask of whoever runs the servers. All calls are made in the runtime's loop."""

    def state(self, name: str) -> ServerState:
        """State of server `name` now; no waiting, no locks."""

    def try_lease(self, name: str) -> Lease | None:
        """A lease on `name` if it takes requests now, else None; no waiting."""

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """A lease on `name`, which is started first where it is started on demand, within `timeout_s`.

        Many callers share one start; one that goes away is dropped, and nothing is started for nobody. Raises
        UnavailableError.
        """

    async def unload(self, name: str) -> None:
        """Have `name` stop once nobody is answered by it; the next request starts it again. Raises UnavailableError.

        Only what is started on demand goes; by default nothing does.
        """
        raise UnavailableError("not_unloaded", f"server {name!r} is not started and stopped by this front")

    @contextlib.asynccontextmanager
    async def lease(self, name: str, timeout_s: float) -> AsyncIterator[Lease]:
        """`acquire`, released when the block ends; an exception that leaves it counts as a failure of the server."""
        held = await self.acquire(name, timeout_s)
        ok = False
        try:
            yield held
            ok = True
        finally:
            held.release(ok=ok)

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:  # noqa: ARG002
        """Who is behind the address of `name` in its place; None when it is that server.

        Looked at before a request is sent on a fresh connection. `ask` has the server itself say it (`/v1/models` on
        that connection), for whoever does not own the process. `peer` is the process that the connection leads to,
        where the kernel says so: of a unix socket. Nobody doubts by default. Raises ProcessLookupError where the
        server's own process has ended.
        """
        return None

    def left_s(self, name: str) -> float | None:  # noqa: ARG002
        """Seconds until `name`, which is on its way up, likely serves; None where nothing says so, as by default."""
        return None

    def ended_from_outside(self, name: str) -> bool:  # noqa: ARG002
        """Whether the last process of `name` may have been stopped or killed, which no request does. By default: no."""
        return False

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """Whether a request that `name` failed may be asked again: it ran out of memory and is started with less.

        `since`: when its lease was granted, a time of the loop. `error_text`: what a server that lives says of its
        memory.
        """


class Control(Protocol):
    """What the control API may ask of the runtime."""

    def status(self) -> FleetStatus:
        """Every process now."""

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop these servers, or everything and the runtime itself when empty. KeyError on an unknown name."""

    async def reload(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """Take over the manifest in `deployment_dir` (None = the present one) and restart `names`.

        Returns `{"started": [...], "stopped": [...], "restarted": [...], "kept": [...], "failed": {name: why}}` and
        `"reloaded"`, the builtin front where it is among `names`: it reads routes and keys again in any case;
        where what failed is in `started` or `restarted` too. With empty `names`, only what changed is restarted.
        KeyError on an unknown name.
        """
