"""Identifies the server behind a fresh connection before a request is sent on it, so that no stranger answers. I/O."""

from __future__ import annotations

import asyncio

from launcher.base.addresses import is_path
from launcher.base.unix_socket import peer_pid
from launcher.ir.live import Upstreams
from launcher.route.target import Target
from launcher.route.upstream import Connection, UpstreamError

_MOST_BYTES = 1 << 20
"""Of what a server says of itself."""


class _AnswerBody:
    """Collects the whole of a small answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.ended = asyncio.Event()
        self.body = b""

    def progress(self) -> None:
        """Called by the connection: keep what has arrived."""
        if self._connection.chunks:
            self.body += self._connection.take()
        is_over = self._connection.complete or self._connection.error is not None
        if is_over or len(self.body) > _MOST_BYTES:
            self.ended.set()


async def get(connection: Connection, target: Target, path: bytes) -> tuple[int, bytes]:
    """GET `path` on `connection`; returns status and body. Raises UpstreamError."""
    head = b"GET %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (path, target.authority, target.authorization)
    answer = _AnswerBody(connection)
    connection.send(answer, head, b"", head_only=False)
    await answer.ended.wait()
    if connection.error is not None:
        raise connection.error
    if not connection.complete:
        connection.close()
        raise UpstreamError("garbage", f"what it says of itself exceeds {_MOST_BYTES} bytes")
    return connection.status, answer.body


async def check_identity(upstreams: Upstreams, target: Target, connection: Connection) -> None:
    """Return if `target` is behind `connection`. Raises UpstreamError: `wrong_server`, or why it is unknown."""

    async def ask() -> bytes:
        status, body = await get(connection, target, b"/v1/models")
        if not connection.finish() or status == 503:
            raise UpstreamError("unreachable", f"it does not say yet who it is (status {status})")
        return body

    try:
        who = await upstreams.stranger(target.name, ask, _peer(connection))
    except ProcessLookupError:
        connection.close()
        raise UpstreamError("unreachable", "its process has ended") from None
    except BaseException:
        connection.close()
        raise
    if who is not None:
        connection.close()
        what = "path" if is_path(connection.address[0]) else "port"
        raise UpstreamError("wrong_server", f"another process has its {what}: {who}")


def _peer(connection: Connection) -> int | None:
    """Pid of the process that listens (called listen) on the unix socket of `connection`; None for a TCP port.

    Raises UpstreamError where the kernel does not tell, because the connection is closed.
    """
    if not is_path(connection.address[0]):
        return None
    try:
        return peer_pid(connection.transport.get_extra_info("socket"))
    except OSError:
        raise UpstreamError("unreachable", "it closed the connection before it was known whose it is") from None
