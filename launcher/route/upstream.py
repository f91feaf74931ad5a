"""Connections to one llama-server: HTTP/1.1 on httptools, kept alive, one request at a time each. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import httptools

from launcher.route.asgi import RawHeaders
from launcher.route.loopback import without_pacing
from launcher.route.repeat import RepeatedHead, repeated_head
from launcher.route.silence import expect_acknowledgements

if TYPE_CHECKING:
    from launcher.route.lane import Lane

HIGH_WATER_BYTES = 256 * 1024
"""Response bytes held for a slow client before the upstream is no longer read."""
_STATUSES = (100, 599)
MAX_HEAD_BYTES = 256 * 1024
_TCP_INFO_BYTES = 128
_BYTES_ACKED = struct.Struct("=Q")
_TELLING = frozenset({b"content-type", b"server"})
_BYTES_ACKED_OFFSET = 120
"""`tcpi_bytes_acked` in Linux's `struct tcp_info` (linux/tcp.h); it counts the SYN as one."""

Failure = Literal["unreachable", "stale", "died", "garbage", "timeout", "client_gone", "stopping", "out_of_memory"]


class UpstreamError(Exception):
    """An exchange that the upstream, or the front on someone's behalf, cut short.

    `unreachable`: no connection, nothing was sent. `stale`: a reused connection was closed already: the server's
    kernel took no byte of the request, so that it cannot have begun.
    `died`: closed during the exchange. `garbage`: the answer is not HTTP. `out_of_memory`:
    it answered that, and lives. The others were decided here.
    """

    def __init__(self, reason: Failure, message: str) -> None:
        """`message` says it for a person."""
        super().__init__(message)
        self.reason = reason


class Connection(asyncio.Protocol):
    """One connection. `send` begins an exchange; `head`, then `read` until b"", take the answer.

    Who does not wait sets `watcher`: it is called whenever something changed, and looks at `head_done`, `buffered`,
    `complete` and `error`.
    """

    __slots__ = (
        "_buffered",
        "_chunks",
        "_dirty",
        "_head_bytes",
        "_head_only",
        "_informational",
        "_keep_alive",
        "_loop",
        "_parser",
        "_paused",
        "_until_eof",
        "_waiter",
        "busy",
        "complete",
        "error",
        "head_done",
        "headers",
        "lane",
        "length",
        "received",
        "repeat",
        "repeated",
        "reused",
        "status",
        "transport",
        "watcher",
        "written",
        "written_before",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Not connected until asyncio says so."""
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self.watcher: Callable[[], object] | None = None
        self.repeat: RepeatedHead | None = None
        self.repeated: RawHeaders = []
        self.lane: Lane | None = None
        self._head_only = False
        self._informational = False
        self.written = 0
        self.written_before = 0
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._until_eof = False
        self._keep_alive = False
        self._dirty = False
        self.transport: asyncio.Transport | None = None
        self.busy = False
        self.reused = False
        self.received = False
        self.status = 0
        self.headers: RawHeaders = []
        """All but content-length, which is apart because it alone differs from answer to answer."""
        self.length: bytes | None = None
        self.head_done = False
        self.complete = False
        self.error: UpstreamError | None = None

    # what the front does with it

    def send(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        """Begin an exchange. `head_only` for HEAD: the answer has no body whatever its headers say."""
        assert self.transport is not None  # noqa: S101  # the pool hands out connected ones only
        self.busy = True
        self.written_before = self.written
        self.written += len(head) + len(body)
        self._begin(head_only=head_only)
        if len(body) < HIGH_WATER_BYTES:
            self.transport.write(head + body if body else head)
        else:
            self.transport.writelines((head, body))

    def _begin(self, *, head_only: bool) -> None:
        """No byte of the answer came yet."""
        self._head_only = head_only
        self.received = self.head_done = self.complete = False
        self._until_eof = self._keep_alive = False
        self._head_bytes = 0

    def uncarry(self) -> None:
        """The exchange of a lane is an ordinary one from now on."""
        self.lane = None
        self._begin(head_only=False)

    async def head(self) -> None:
        """Wait until `status` and `headers` are known. Raises UpstreamError."""
        while not self.head_done:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises UpstreamError once all that came was read."""
        while True:
            if self._chunks:
                return self.take()
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait()

    def take(self) -> bytes:
        """Everything of the body that has come and was not read yet."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def buffered(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._chunks)

    @property
    def drained(self) -> bool:
        """The answer is complete and all of it was taken."""
        return self.complete and not self._chunks

    def abort(self, error: UpstreamError) -> None:
        """Give the exchange up now: what was not read is dropped, and llama-server sees its client leave."""
        if self.complete and not self.busy:
            return
        self._chunks.clear()
        self.complete = False
        self._fail(error)

    def finish(self) -> bool:
        """End the exchange. True when the connection can serve another; else it is closed."""
        reusable = (
            self.drained
            and self._keep_alive
            and not self._dirty
            and self.error is None
            and self.transport is not None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )
        self.busy = False
        self.watcher = None
        self.headers = []
        self.reused = True
        if not reusable:
            self.close()
        return reusable

    def close(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def alive(self) -> bool:
        """Whether an idle connection can still be used, as far as is known here."""
        return self.transport is not None and not self.transport.is_closing()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: C901  # the hot path
        """Bytes of the answer; without a request, or after its answer, they make the connection unusable."""
        lane = self.lane
        if lane is not None:
            repeat = self.repeat
            assert repeat is not None  # noqa: S101  # a lane takes no other connection
            start = (
                repeat.start if len(data) == repeat.size and data.startswith(repeat.head) else repeat.body_start(data)
            )
            if start and lane.arrive(self, data[start:]):
                return
            lane.leave()
        if not self.busy:
            self.close()
            return
        if self.repeat is not None and not self.received and not self._head_only:
            start = self.repeat.body_start(data)
            if start:
                self._answered_again(data[start:])
                return
        first = not self.received
        self.received = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.complete:
                self._dirty = True
            else:
                self._fail(UpstreamError("garbage", f"the server's answer is not HTTP: {error}"))
                return
        if not self.head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(UpstreamError("garbage", f"the server's headers exceed {MAX_HEAD_BYTES} bytes"))
            return
        if self._buffered > HIGH_WATER_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        if first and self.complete and self.repeat is None and self._may_repeat():
            self.repeat = repeated_head(data)
            self.repeated = self.headers
        self._notify()

    def _may_repeat(self) -> bool:
        """Whether the answer that is complete was an ordinary one, whose head the next may have too."""
        return self.status == 200 and self._keep_alive and not (self._dirty or self._informational or self._head_only)

    def _answered_again(self, body: bytes) -> None:
        """A whole answer came, with the head of an earlier one."""
        self.received = self.head_done = self.complete = self._keep_alive = True
        self.status = 200
        self.headers = self.repeated
        self.length = b"%d" % len(body)
        if body:
            self._chunks.append(body)
        self._notify()

    def eof_received(self) -> None:
        """The upstream ends: the end of an answer without a length, the death of any other."""
        if self.lane is not None:
            self.lane.leave()
        if self.busy and self.head_done and self._until_eof and not self.complete:
            self.complete = True
            self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whichever side."""
        if self.lane is not None:
            self.lane.leave()
        if not self.busy or self.complete:
            return
        if self.error is None:
            stale = self.reused and not self.received and not self._reached()
            how = "reset" if exc is not None else "closed"
            self.error = UpstreamError("stale" if stale else "died", f"the server {how} the connection")
        self._notify()

    def _reached(self) -> bool:
        """Whether a byte of the request may have come to the server: its kernel acknowledged it."""
        sock: socket.socket | None = None if self.transport is None else self.transport.get_extra_info("socket")
        if sock is None:
            return True
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return True
        if len(info) < _TCP_INFO_BYTES:
            return True
        acknowledged: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0]
        return acknowledged > self.written_before + 1

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """A status line begins; a second one after the answer was not asked for."""
        if self.complete:
            self._dirty = True
            return
        self.headers = []
        self.length = None
        self._informational = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are dropped."""
        if not self.head_done:
            name = name.lower()
            if name == b"content-length":
                self.length = value
            else:
                self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is known, or was an interim one."""
        if self.complete:
            return
        status = self._parser.get_status_code()
        if not _STATUSES[0] <= status <= _STATUSES[1]:
            self._fail(UpstreamError("garbage", f"the server's answer is not HTTP: status {status}"))
            return
        if status < 200:
            self._informational = True
            return
        self.status = status
        self._until_eof = (
            self.length is None
            and status not in (204, 304)
            and not any(name == b"transfer-encoding" for name, _ in self.headers)
        )
        self.head_done = True
        if self._head_only:
            self._keep_alive = False
            self.complete = True

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        if not self.complete:
            self._chunks.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        """The answer ends as its framing says."""
        if self._informational or self.complete:
            return
        self._keep_alive = self._parser.should_keep_alive() and not self._ends_with_stream()
        self.complete = True

    def _ends_with_stream(self) -> bool:
        """Whether the server closes the connection now although its head says nothing of it.

        llama-server does after every stream (server-http.cpp: its content provider returns false at the end, which
        cpp-httplib takes for a failed write); the next request on it would be lost.
        """
        lines = [(name, value[:17].lower()) for name, value in self.headers if name in _TELLING]
        return (b"content-type", b"text/event-stream") in lines and (b"server", b"llama.cpp") in lines

    # waiting

    async def _wait(self) -> None:
        """Sleep until something changes."""
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _notify(self) -> None:
        """Wake the reader."""
        if self.watcher is not None:
            self.watcher()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        """Remember the first error, close, wake the reader."""
        if self.error is None:
            self.error = error
        self.close()
        self._notify()


class Pool:
    """Idle connections to one host and port, newest first."""

    def __init__(self, host: str, port: int, *, max_idle: int) -> None:
        """`max_idle` connections are kept at most; none once the pool is closed."""
        self.host = host
        self.port = port
        self.max_idle = max_idle
        self.idle: list[Connection] = []

    def take(self) -> Connection | None:
        """An idle connection that was not closed yet."""
        while self.idle:
            connection = self.idle.pop()
            if connection.alive:
                return connection
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A fresh connection. Raises UpstreamError `unreachable`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                transport, connection = await loop.create_connection(lambda: Connection(loop), self.host, self.port)
        except TimeoutError:
            raise UpstreamError("unreachable", f"no connection within {timeout_s:g} s") from None
        except OSError as error:
            raise UpstreamError("unreachable", f"no connection: {error.strerror or error}") from None
        sock = transport.get_extra_info("socket")
        expect_acknowledgements(sock)
        without_pacing(sock)
        return connection

    def put_back(self, connection: Connection) -> None:
        """Take a connection back after its exchange; unusable or surplus ones are closed."""
        if not connection.finish():
            return
        if len(self.idle) >= self.max_idle:
            connection.close()
        else:
            self.idle.append(connection)

    def forget_idle(self) -> None:
        """Close the idle connections: the server behind them is gone or another."""
        for connection in self.idle:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                connection.close()
        self.idle.clear()

    def close(self) -> None:
        """Close idle connections now, and the others when their exchange ends."""
        self.max_idle = 0
        self.forget_idle()
