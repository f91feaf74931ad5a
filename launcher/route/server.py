"""Serves the front on its sockets until shutdown, then drains it. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence

import msgspec

from launcher.route.clients import Clients
from launcher.route.doors import Listeners, listening_socket, unlink_path
from launcher.route.front import Front
from launcher.route.guard import require_key_for_public
from launcher.route.key_watch import watch_keys
from launcher.route.sockets import raise_descriptors

_ENDED_WITHIN_S = 2.0
"""Seconds that requests cut off by the drain may take to end."""


async def serve(
    front: Front,
    *,
    host: str,
    port: int,
    sock: socket.socket | None = None,
    more: Sequence[socket.socket] = (),
    doors: Listeners | None = None,
    shutdown: asyncio.Event,
    drain_timeout_s: float,
) -> None:
    """Serve `front` until `shutdown` is set; then finish what is in flight, for at most `drain_timeout_s` seconds.

    `sock`: a bound socket to use instead of `host` and `port`; `more`: others beside it; all are closed at the end.
    `doors`: given instead of these by a caller that moves the listeners itself. Raises HostError when the address is
    not available, ConfigError when it is public and no key is required.
    """
    if doors is None:
        if sock is None:
            sock = bind(front, host, port)
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            require_key_for_public(sock.getsockname()[0], front.unit.api_key_file)
        with contextlib.ExitStack() as unless_made:
            unless_made.callback(sock.close)
            doors = Listeners(front, sock, more)
            unless_made.pop_all()
    raise_descriptors(front.unit.max_connections)
    with contextlib.closing(doors), contextlib.closing(front):
        loop = asyncio.get_running_loop()
        await doors.open()
        tasks = (loop.create_task(_keep_date(front)), loop.create_task(watch_keys(front)))
        try:
            await shutdown.wait()
            doors.close()
            limit_s = drain_timeout_s if doors.drain_timeout_s is None else doors.drain_timeout_s
            await _drain(doors.clients, limit_s)
        except asyncio.CancelledError:
            doors.close()
            await _drain(doors.clients, 0)
            raise
        finally:
            for task in tasks:
                task.cancel()


async def _drain(everybody: tuple[Clients, ...], timeout_s: float) -> None:
    """Let requests in flight end, then cut them off."""
    for clients in everybody:
        clients.stop()
    await _none_left(everybody, timeout_s)
    for connection in [connection for clients in everybody for connection in clients.connections]:
        connection.stop_requests()
    await _none_left(everybody, _ENDED_WITHIN_S)
    for connection in [connection for clients in everybody for connection in clients.connections]:
        connection.transport.abort()


async def _none_left(everybody: tuple[Clients, ...], timeout_s: float) -> None:
    """Wait until the last connection has ended, or `timeout_s` has passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for clients in everybody:
                await clients.none_left.wait()


async def _keep_date(front: Front) -> None:
    """Renew the Date line every second."""
    while True:
        front.clients.date = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime()).encode()
        await asyncio.sleep(1)


def bind(front: Front, host: str, port: int) -> socket.socket:
    """A listening socket for `front`. Raises HostError if the address is not available, ConfigError like `serve`."""
    return listening_socket(msgspec.structs.replace(front.unit, host=host, port=port))


def bind_more(front: Front) -> tuple[socket.socket, ...]:
    """Sockets for all addresses in `runtime.front.listen`. Raises like `bind`, and then leaves none open."""
    with contextlib.ExitStack() as opened:
        socks = []
        for host in front.unit.listen:
            socks.append(bind(front, host, front.unit.port))
            opened.enter_context(socks[-1])
            opened.callback(unlink_path, socks[-1])
        opened.pop_all()
    return tuple(socks)
