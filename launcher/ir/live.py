"""The running fleet, as rooms of the runtime show it to each other. Pure types and protocols."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Protocol

import msgspec

Manager = Literal["runtime", "systemd", "systemd --user", "kubernetes", "slurm"]
"""The owner of the processes: our runtime, whose children they are; systemd, whose units it starts and stops; a
Kubernetes cluster, whose Deployments it scales; or Slurm, to which it submits jobs."""
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
    """While it starts: expected seconds until ready, by what is loaded already, else by the disk's speed."""
    load_s: float | None = None
    """Expected seconds for reading its files; None: the disk's speed is unknown."""
    restarts: int = 0
    exit_code: int | None = None
    error: str | None = None
    log_file: str | None = None
    log_tail: tuple[str, ...] = ()
    planned_bytes: dict[str, int] = {}
    measured_bytes: dict[str, int] = {}
    """Resident RAM (shared pages count in full), and GPU memory where the driver reports it per process."""
    pss_bytes: int | None = None
    """RAM with each shared page divided among the processes that share it; None: not measured yet."""
    in_flight: int | None = 0
    """None: only the front knows, and does not answer."""
    slots: int = 0
    queued: int = 0
    """Requests that wait for a slot, or for the server to start."""
    tokens_per_second: float | None = None
    """Speed of the last answer that reported it, or could be timed."""
    first_token_s: float | None = None
    """Seconds from request to first part of the last streamed answer."""
    breaker_s: float = 0
    """Seconds until the front sends requests again after failures, unless the server proves itself before; 0: it does
    now."""
    drift: str = ""
    rung: str = ""
    """After out-of-memory: its position on its ladder (`1/4: q3_k_m`); "" = as planned."""
    in_ram_percent: float | None = None
    """Share of its files in RAM, where the warm pool manages them and it can be measured."""
    in_ram: str = ""
    """State of its files in the warm pool: `warm`, `locked`, `loading`, "" = none."""
    pinned: bool = False
    """Its files are pinned: they stay in RAM until they are unpinned, across restarts of the fleet."""


class HookStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A step after ready, in the order of the manifest, and its result."""

    name: str
    kind: Literal["http", "command", "python"]
    state: Literal["pending", "running", "done", "failed"]
    on_failure: Literal["fail", "warn"]
    seconds: float | None = None
    error: str | None = None
    finished_at: float | None = None
    """Unix time."""


class TargetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A service level and its last measurement; None: not measured yet. `server` empty: the fleet's."""

    name: str
    server: str
    limit: float
    measured: float | None = None
    met: bool | None = None


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole fleet: its manager, and every process. `schema` is `launch.status/v1`.

    `drift` lists differences between generated, installed, loaded and running state beyond single processes.
    """

    schema: str = "launch.status/v1"
    deployment: str
    input_digest: str
    runtime_pid: int | None
    """None: no runtime is alive. 0: its lock is held by a process that the lock does not name."""
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
    """A server cannot take a request now. `retry_after_s`: for the client, if a retry may help."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        """`code` is stable (`server_failed`, `start_timeout`, `queue_full`)."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Lease(msgspec.Struct, eq=False):
    """A request's hold on a server, from the grant on: meanwhile the server is neither evicted nor swapped out.

    A stop waits for the release, at most as long as a drain may take.
    """

    name: str
    end: Callable[[bool], None] | None = None
    """Called once, with `ok`, when the lease is released."""
    address: tuple[str, int] | None = None
    """Host and port (or path and 0) of the process; None: as in the routes. During a reload the routes may already name
    those of the next process."""
    granted_at: float = 0.0
    """Loop time, for comparing with what has happened to the server since."""

    def release(self, *, ok: bool) -> None:
        """End the hold; `ok` False: the server failed the request, or was never asked. A second call does nothing."""
        end, self.end = self.end, None
        if end is not None:
            end(ok)


class Upstreams(Protocol):
    """The data plane's view of the manager of the servers. All calls are made in the runtime's loop."""

    def state(self, name: str) -> ServerState:
        """State of server `name` now; no waiting, no locks."""

    def try_lease(self, name: str) -> Lease | None:
        """A lease on `name` if it takes requests now, else None; no waiting."""

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """A lease on `name`, which is started first if it starts on demand, within `timeout_s`.

        Callers share one start. A cancelled caller is dropped; when the last one is, nothing more is started for it.
        Raises UnavailableError.
        """

    async def unload(self, name: str) -> None:
        """Stop `name` once it has no request in flight; the next request starts it again. Raises UnavailableError.

        Only servers that start on demand can be unloaded; by default none can.
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
        """The process behind the address of `name` in its place; None: it is that server.

        Asked before a request is sent on a fresh connection. `ask` lets the server itself answer (`/v1/models` on that
        connection), for managers that do not own the process. `peer` is the process at the other end of the connection,
        where the kernel tells (unix sockets). By default every server is trusted. Raises ProcessLookupError where the
        server's own process has ended.
        """
        return None

    def left_s(self, name: str) -> float | None:  # noqa: ARG002
        """Expected seconds until `name`, which is starting, serves; None: unknown, as by default."""
        return None

    def ended_from_outside(self, name: str) -> bool:  # noqa: ARG002
        """Whether the last process of `name` may have been stopped or killed by someone else. By default: no."""
        return False

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """Whether to retry a request that `name` failed: it ran out of memory and is started with less.

        `since`: when the request's lease was granted (loop time). `error_text`: what a live server reported of its
        memory.
        """


class Control(Protocol):
    """The control API's view of the runtime."""

    def status(self) -> FleetStatus:
        """The status of every process now."""

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop these servers, or everything and the runtime itself when empty. KeyError on an unknown name."""

    async def reload(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """Take over the manifest in `deployment_dir` (None = the present one) and restart `names`.

        Returns `{"started": [...], "stopped": [...], "restarted": [...], "kept": [...], "failed": {name: why}}` and
        `"reloaded"`, the builtin front where it is among `names`: it reads routes and keys again in any case;
        where what failed is in `started` or `restarted` too. With empty `names`, only what changed is restarted.
        KeyError on an unknown name.
        """
