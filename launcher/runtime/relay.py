"""A front that waits for its turn to lead: it passes its clients on, byte by byte, to the one that does. I/O."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

_CONNECT_S = 3.0
_HEAD_S = 5.0
_CHUNK_BYTES = 1 << 16
_BODY = (
    b'{"error":{"message":"no front of this fleet leads yet; ask again","type":"unavailable_error",'
    b'"code":"front_waiting"}}'
)
_NOBODY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Relay:
    """Listens where the front will. `leader`: host and port of the one that leads; None while nobody is known to.

    TLS goes through as it is. Clients for whom there is nobody get a typed 503, those of a front with TLS
    (`encrypted`) a closed connection.
    """

    def __init__(self, leader: Callable[[], tuple[str, int] | None], *, encrypted: bool) -> None:
        """Listens nowhere yet."""
        self._leader = leader
        self._encrypted = encrypted
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        """Begin to listen. Raises OSError."""
        self._server = await asyncio.start_server(self._accepted, host, port, limit=_CHUNK_BYTES)

    async def close(self) -> None:
        """Listen no more. Clients that are passed on stay with the front that they have, until it ends them."""
        if self._server is not None:
            self._server.close()

    async def end(self) -> None:
        """End the clients that are left."""
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the stream's callback is one
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # we end; the stream's own callback would log it
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leader = self._leader()
        if leader is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    there = await asyncio.open_connection(*leader, limit=_CHUNK_BYTES)
                try:
                    await _both_ways((reader, writer), there)
                finally:
                    there[1].close()
                return
        if not self._encrypted:
            async with asyncio.timeout(_HEAD_S):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(_NOBODY)
            await writer.drain()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _both_ways(client: Streams, server: Streams) -> None:
    """Until both have said their last, or one of them is gone."""
    async with asyncio.TaskGroup() as ways:
        ways.create_task(_pump(client[0], server[1]))
        ways.create_task(_pump(server[0], client[1], ends=client[1]))


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, ends: asyncio.StreamWriter | None = None
) -> None:
    """Bytes from `source` to `sink`, and its end. A server's end closes the client's connection (`ends`)."""
    try:
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except OSError:
        sink.close()
    if ends is not None:
        ends.close()
