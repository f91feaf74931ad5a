"""A client of a living runtime's control socket, and the socket itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import msgspec

from launcher.base.decoding import decoded
from launcher.base.procfs import is_suspended
from launcher.errors import (
    CatalogError,
    ConfigError,
    EngineError,
    Finding,
    HostError,
    LaunchError,
    PlanError,
    SuperviseError,
)
from launcher.ir.live import FleetStatus
from launcher.supervise.offline import runtime_holder, runtime_pid

SOCKET_NAME = "control.sock"
_MAX_SOCKET_PATH = 100
"""sun_path holds 108 bytes; longer paths go through a descriptor of the directory."""
_CONNECT_S = 5.0
_STATUS_S = 10.0
ERROR_CLASSES: dict[int, type[LaunchError]] = {
    c.exit_code: c for c in (ConfigError, CatalogError, PlanError, EngineError, HostError, SuperviseError)
}
"""LaunchError classes by the exit code that a runtime reports."""


class NoRuntimeError(Exception):
    """No runtime answers for this deployment: none lives, or it is just starting or ending."""


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    findings: tuple[Finding, ...] = ()
    exit_code: int = 0


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


@contextlib.contextmanager
def socket_address(state_dir: Path) -> Iterator[str]:
    """A path of the control socket that is short enough for a socket address, valid within the block."""
    path = state_dir / SOCKET_NAME
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        yield str(path)
        return
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def control_socket(state_dir: Path) -> Iterator[socket.socket]:
    """The listening control socket (mode 0600) within the block; connections wait until it is served.

    The caller holds the runtime's lock, so an existing socket file is a leftover and is removed.
    """
    path = state_dir / SOCKET_NAME
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(state_dir) as address:
            sock.bind(address)
        path.chmod(0o600)
        sock.listen()
        yield sock
    finally:
        sock.close()
        path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def serve_control(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on the control socket within the block."""
    import uvicorn  # noqa: PLC0415 - 0.1 s that clients need not pay

    class Server(uvicorn.Server):
        """A uvicorn server without signal handlers: the runtime has its own."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            """Install no signal handlers."""
            yield

    config = uvicorn.Config(
        app, loop="none", lifespan="off", log_config=None, log_level="critical", timeout_graceful_shutdown=2
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)


def _check_socket(state_dir: Path) -> None:
    """Raise NoRuntimeError unless a process listens on the control socket."""
    if not (state_dir / SOCKET_NAME).exists():
        raise NoRuntimeError(f"no runtime serves {state_dir}")
    with socket_address(state_dir) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # a runtime that is stuck, and has as many waiting as may, holds nobody up
        try:
            sock.connect(address)
        except OSError as error:
            raise NoRuntimeError(f"no runtime serves {state_dir}: {error.strerror or error}") from None


@contextlib.contextmanager
def _pidfd(pid: int | None) -> Iterator[select.poll | None]:
    """A poll object that reports the end of process `pid`; None when there is no such process."""
    try:
        descriptor = os.pidfd_open(pid) if pid is not None else -1
    except OSError:
        descriptor = -1
    if descriptor < 0:
        yield None
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    try:
        yield poller
    finally:
        os.close(descriptor)


class ControlClient:
    """A blocking client of one runtime's control API. A context manager.

    Every method raises NoRuntimeError when no runtime answers, KeyError with a message for an unknown name, and the
    runtime's own LaunchError where it refuses.
    """

    def __init__(self, state_dir: Path) -> None:
        """`state_dir` is the deployment's (`launcher.files.state.deployment_state_dir`). Raises NoRuntimeError."""
        holder = runtime_holder(state_dir)
        if holder is not None and is_suspended(holder.pid):
            raise NoRuntimeError(f"the runtime of {state_dir} (pid {holder.pid}) is stopped by a signal")
        _check_socket(state_dir)
        import httpx  # noqa: PLC0415 - 0.2 s that other commands need not pay

        self._state_dir = state_dir
        self._stack = contextlib.ExitStack()
        address = self._stack.enter_context(socket_address(state_dir))
        transport = httpx.HTTPTransport(uds=address)
        self._client = self._stack.enter_context(httpx.Client(transport=transport, base_url="http://launch"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()

    def status(self) -> FleetStatus:
        """The fleet's status now."""
        return msgspec.json.decode(self._call("GET", "/api/status", timeout_s=_STATUS_S), type=FleetStatus)

    def stop(self, names: tuple[str, ...] = (), *, wait_s: float | None = None) -> None:
        """Stop `names` and return when they are gone; with none, everything and the runtime itself.

        `wait_s` limits the wait for the runtime's end in seconds (None: no limit); TimeoutError when it has passed.
        """
        runtime = None if names else runtime_pid(self._state_dir)
        with _pidfd(runtime) as watched:
            # Everything: the answer is at once, the end comes later. Of single servers it comes when they are gone.
            self._call("POST", "/api/stop", {"names": names}, timeout_s=None if names else _STATUS_S)
            if watched is not None and not watched.poll(None if wait_s is None else wait_s * 1000):
                raise TimeoutError(f"the runtime still runs after {wait_s:g} s")

    def reload(self, names: tuple[str, ...] = (), deployment_dir: Path | None = None) -> dict[str, Any]:
        """See `launcher.ir.live.Control.reload`; returns when restarted processes are ready or have failed."""
        directory = None if deployment_dir is None else str(deployment_dir.absolute())
        raw = self._call("POST", "/api/reload", {"names": names, "deployment_dir": directory})
        changes: dict[str, Any] = msgspec.json.decode(raw)
        return changes

    def page_link(self) -> str:
        """A token that opens one session of the page at /ui."""
        word: str = msgspec.json.decode(self._call("POST", "/v1/launch/link", {}, timeout_s=_STATUS_S))["token"]
        return word

    def pool(self, verb: str, name: str) -> None:
        """Preload, pin, unpin or evict a model of the warm pool."""
        self._call("POST", f"/v1/launch/pool/{quote(name, safe='')}/{verb}", {}, timeout_s=_STATUS_S)

    def requests(self) -> dict[str, Any]:
        """The requests that run or wait (`now`), and the last ones that ended (`ended`)."""
        found: dict[str, Any] = msgspec.json.decode(self._call("GET", "/v1/launch/requests", timeout_s=_STATUS_S))
        return found

    def _call(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None) -> bytes:
        """Send a request; returns the body of a 200 answer. `timeout_s`: limit of the wait for it, None: no limit."""
        import httpx  # noqa: PLC0415 - as above

        content = None if body is None else msgspec.json.encode(body)
        try:
            timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
            answer = self._client.request(method, path, content=content, timeout=timeout)
        except httpx.TransportError as error:
            raise NoRuntimeError(f"the runtime of {self._state_dir} does not answer: {error}") from None
        if answer.status_code == 200:
            return answer.content
        body = decoded(answer.content, _ErrorBody)
        found = _Error(message=answer.text) if body is None else body.error
        if answer.status_code == 404:
            raise KeyError(found.message)
        if found.exit_code in ERROR_CLASSES:
            raise ERROR_CLASSES[found.exit_code](found.findings)
        raise RuntimeError(f"the runtime answered {answer.status_code}: {found.message}")
