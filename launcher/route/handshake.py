"""TLS connections: counted from their first packet, with the same time limit for the handshake as for a head. I/O.

The event loop's own servers report a connection only after its handshake: a client that never sends a byte would not be
counted, and would keep its descriptor for a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from launcher.route.clients import Clients
from launcher.route.connection import ClientConnection
from launcher.route.handler import Handler
from launcher.route.problem import HttpError
from launcher.route.sockets import client_of

_LOG = logging.getLogger("launch.route")
_AT_ONCE = 64
"""Connections that are accepted before other events have a turn."""
_AGAIN_S = 0.1
"""Seconds without accepting, if the system has no resources left."""
_NO_MORE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TlsServer:
    """Accepts connections of a listening socket, and begins TLS on them."""

    def __init__(self, sock: socket.socket, clients: Callable[[], Clients], context: ssl.SSLContext) -> None:
        """`clients` returns the set that the next connection belongs to."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._clients = clients
        self._context = context
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more connections."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                found, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_MORE:
                    self._loop.remove_reader(self._sock.fileno())
                    self._loop.call_later(_AGAIN_S, self._again)
                    return
                continue  # that one is gone already
            begin_tls(found, self._clients(), self._context)

    def _again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)


def begin_tls(sock: socket.socket, clients: Clients, context: ssl.SSLContext) -> None:
    """Begin the TLS handshake on an accepted connection, if there is room for it."""
    try:
        peer = sock.getpeername()
    except OSError:  # it is gone
        sock.close()
        return
    handshake = _Handshake(sock, clients, client_of(peer[0] if isinstance(peer, tuple) else ""))
    if clients.admit(handshake):
        handshake.begin(context)
    else:
        sock.close()  # to say why would take a handshake


class _Handshake:
    """A connection that has yet to agree on TLS: a `Member` of all, until a `ClientConnection` takes its place."""

    uploaded = 0

    def __init__(self, sock: socket.socket, clients: Clients, client: str) -> None:
        self._sock = sock
        self._clients = clients
        self.client = client
        self._timeout_s = clients.unit.header_timeout_s
        self.idle_since = asyncio.get_running_loop().time() + self._timeout_s
        self._agreeing: asyncio.Task[None] | None = None
        self._has_begun = False

    def begin(self, context: ssl.SSLContext) -> None:
        self._agreeing = asyncio.get_running_loop().create_task(self._agree(context))

    async def _agree(self, context: ssl.SSLContext) -> None:
        loop, self._has_begun = asyncio.get_running_loop(), True
        try:
            with contextlib.suppress(OSError):  # it is no TLS, or did not come in time
                await loop.connect_accepted_socket(
                    lambda: ClientConnection(self._clients, self),
                    self._sock,
                    ssl=context,
                    ssl_handshake_timeout=self._timeout_s,
                )
        finally:
            self._agreeing = None
            self._clients.ended(self)

    @property
    def transport(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self)  # which can be aborted

    def abort(self) -> None:
        task, self._agreeing = self._agreeing, None
        if task is not None:
            task.cancel()
        if not self._has_begun:
            self._sock.close()
            self._clients.ended(self)

    drain = stop_requests = abort

    # nothing was asked yet

    def handlers(self) -> tuple[Handler, ...]:
        return ()

    def read_on(self) -> None:
        pass

    def refuse_upload(self, error: HttpError) -> None:
        pass

    def take_turn(self) -> bool:
        return False
