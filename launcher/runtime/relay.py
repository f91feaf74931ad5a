"""The listener of a front that does not lead: it relays its clients, byte by byte, to the leading one. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from launcher.route.sockets import expect_acknowledgements

_CONNECT_S = 3.0
_HEAD_S = 5.0
_CHUNK_BYTES = 1 << 16


def _problem(status: bytes, code: bytes, message: bytes) -> bytes:
    body = b'{"error":{"message":"%b","type":"unavailable_error","code":"%b"}}' % (message, code)
    head = b"content-type: application/json\r\nretry-after: 1\r\nconnection: close"
    return b"HTTP/1.1 %b\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (status, head, len(body), body)


_NO_LEADER = _problem(b"503 Service Unavailable", b"front_waiting", b"no front of this fleet leads yet; ask again")
_ENDED = _problem(b"502 Bad Gateway", b"front_ended", b"the front that led ended before it answered")


class Relay:
    """Listens where the front will. `leader`: host and port of the leading front; None: unknown.

    TLS is relayed as it is. Clients get a 503 (JSON error) while no leader is known, and a 502 if the leader ended, or
    its host fell silent, before it answered; clients of a front with TLS (`encrypted`) get a closed connection.
    """

    def __init__(self, leader: Callable[[], tuple[str, int] | None], *, encrypted: bool) -> None:
        self._leader = leader
        self._encrypted = encrypted
        self._sock: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self, sock: socket.socket) -> None:
        """Accept the clients of `sock`, which listens already."""
        self._sock = sock
        self._server = await asyncio.start_server(self._accepted, sock=sock, limit=_CHUNK_BYTES)

    def hand_over(self) -> socket.socket:
        """Accept no more clients; returns a socket that still listens, for the front to accept from and to close.

        Clients that are relayed stay with their front until it ends them.
        """
        assert self._sock is not None and self._server is not None  # noqa: S101, PT018 - it was opened
        left = self._sock.dup()
        self._server.close()
        return left

    async def end(self) -> None:
        """End the clients that are left; those that got no byte of an answer get the 502."""
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the stream's callback is one
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        answered = [0]
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(reader, writer, answered)
        except asyncio.CancelledError:  # we end; the stream's own callback would log it
            if not answered[0] and not self._encrypted:
                writer.write(_ENDED)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: list[int]) -> None:
        leader = self._leader()
        if leader is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    there = await asyncio.open_connection(*leader, limit=_CHUNK_BYTES)
                expect_acknowledgements(there[1].get_extra_info("socket"))
                try:
                    asked = await _relay((reader, writer), there, answered)
                finally:
                    there[1].close()
                if asked and not answered[0] and not self._encrypted:
                    answered[0] = len(_ENDED)
                    writer.write(_ENDED)
                    await writer.drain()
                return
        if not self._encrypted:
            async with asyncio.timeout(_HEAD_S):
                await reader.readuntil(b"\r\n\r\n")
            answered[0] = len(_NO_LEADER)
            writer.write(_NO_LEADER)
            await writer.drain()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _relay(client: Streams, server: Streams, answered: list[int]) -> int:
    """Relay until the server ends, counting its bytes in `answered`; returns the number of bytes from the client."""
    asked = [0]
    asking = asyncio.create_task(_ask(client[0], server[1], asked))
    try:
        await _pump(server[0], client[1], answered)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    return asked[0]


async def _ask(source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: list[int]) -> None:
    """Relay all that a client sends, and to the server its end: half closed, or closed if it disconnected."""
    if await _pump(source, sink, count):
        sink.write_eof()
    else:
        sink.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: list[int]) -> bool:
    """Copy `source` to `sink`, counting bytes. Returns whether `source` ended and no connection broke."""
    try:
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            count[0] += len(data)
            await sink.drain()
    except OSError:
        return False
    return not sink.is_closing()
