"""The front on a socket: uvicorn with our protocol, started and drained by whoever owns the process. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from launcher.errors import Finding, HostError
from launcher.route.front import Front
from launcher.route.guard import require_key_for_public
from launcher.route.loopback import without_pacing
from launcher.route.protocol import FrontProtocol

_BACKLOG = 2048
_POLL_S = 0.01
_CANCELLED_WITHIN_S = 2.0
"""What cancelled requests may take to end."""


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers (the runtime owns the signals), stopped by an event."""

    def __init__(self, config: uvicorn.Config, shutdown: asyncio.Event, drain_timeout_s: float) -> None:
        """Serves until `shutdown` is set, and then what is in flight for `drain_timeout_s`."""
        super().__init__(config)
        self._shutdown = shutdown
        self._drain_timeout_s = drain_timeout_s

    async def main_loop(self) -> None:
        """Sleep until it is time to stop; renew the Date header every second."""
        while not self._shutdown.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shutdown.wait(), 1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more; let what is in flight end, then cancel it."""
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn offers no event for it
                    await asyncio.sleep(_POLL_S)
        await self._cut_short()
        for connection in list(state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _cut_short(self) -> None:
        """End what the drain left, on both paths."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, FrontProtocol):
                connection.cut_short()
        for task in (tasks := list(self.server_state.tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCELLED_WITHIN_S)

    async def stop_now(self) -> None:
        """End without a drain, when the serving task itself was cancelled."""
        if self.started:
            self._drain_timeout_s = 0
            await self.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(
    front: Front,
    *,
    host: str,
    port: int,
    sock: socket.socket | None = None,
    shutdown: asyncio.Event,
    drain_timeout_s: float,
) -> None:
    """Serve `front` until `shutdown` is set; then finish what is in flight, for at most `drain_timeout_s`.

    `sock` is a bound socket to use instead of `host` and `port`; it is closed at the end. Raises HostError when the
    address cannot be had, ConfigError when it is public and no key is asked for.
    """
    if sock is None:
        sock = bind(front, host, port)
    elif sock.family in (socket.AF_INET, socket.AF_INET6):
        require_key_for_public(sock.getsockname()[0], front.unit.api_key_file)
    without_pacing(sock)
    settings: dict[str, Any] = {
        "http": functools.partial(FrontProtocol, front),
        "timeout_keep_alive": front.unit.idle_timeout_s,
        "ssl_certfile": front.unit.tls_cert_file,
        "ssl_keyfile": front.unit.tls_key_file,
    }
    config = uvicorn.Config(
        front,
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        **settings,
    )
    server = _Server(config, shutdown, drain_timeout_s)
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        sock.close()
        message = f"TLS cannot be had from {front.unit.tls_cert_file} and {front.unit.tls_key_file}: {error}"
        finding = Finding(
            code="route/tls-unusable", severity="error", key="runtime.front.tls_cert_file", message=message
        )
        raise HostError([finding]) from None
    try:
        await server.serve(sockets=[sock])
    except asyncio.CancelledError:
        await server.stop_now()
        raise
    finally:
        front.close()
        sock.close()


def bind(front: Front, host: str, port: int) -> socket.socket:
    """A listening socket for `front`. Raises HostError when the address cannot be had, ConfigError as `serve`."""
    require_key_for_public(host, front.unit.api_key_file)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"the front cannot listen on {host}:{port}: {error.strerror or error}"
        finding = Finding(code="route/cannot-listen", severity="error", key="runtime.front.port", message=message)
        raise HostError([finding]) from None
