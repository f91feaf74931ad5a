"""HTTP/1.1 connections to one upstream, on httptools: kept alive, one request at a time each. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, cast

import httptools

from launcher.route.head import RawHeaders, RepeatedHead, repeated_head
from launcher.route.problem import HttpError
from launcher.route.sockets import acknowledged_bytes, expect_acknowledgements, without_pacing

HIGH_WATER_BYTES = 256 * 1024
"""Response bytes held for a slow client before the upstream is no longer read."""
_STATUSES = (100, 599)
MAX_HEAD_BYTES = 256 * 1024

Failure = Literal[
    "unreachable",
    "wrong_server",
    "stale",
    "died",
    "garbage",
    "timeout",
    "client_gone",
    "stopping",
    "out_of_memory",
    "refused",
]


class UpstreamError(Exception):
    """An exchange cut short by the upstream, or by the front.

    `unreachable`: no connection, nothing was sent. `wrong_server`: another process has its port, nothing was sent.
    `stale`: a reused connection was closed already and the server's kernel took no byte of the request, so it cannot
    have begun. `died`: closed during the exchange. `garbage`: the answer is not HTTP. `out_of_memory`: the server
    answered so, and lives. `refused`: an outside server answered that it does not serve us (now). `timeout`,
    `client_gone` and `stopping` were decided by the front.
    """

    def __init__(self, reason: Failure, message: str, problem: HttpError | None = None) -> None:
        """`message` is for people; `problem` is the client's answer, where it is decided already."""
        super().__init__(message)
        self.reason = reason
        self.problem = problem

    def as_http(self, server: str) -> HttpError:
        """The answer for a client of `server`."""
        if self.problem is not None:
            return self.problem
        message = f"server {server!r}: {self}"
        if self.reason == "unreachable":
            return HttpError(503, "upstream_unreachable", message, retry_after_s=1)
        if self.reason == "wrong_server":
            return HttpError(503, "wrong_server", message, retry_after_s=1)
        if self.reason == "timeout":
            return HttpError(504, "upstream_timeout", message)
        if self.reason == "garbage":
            return HttpError(502, "upstream_garbage", message)
        if self.reason == "out_of_memory":
            return HttpError(503, "out_of_memory", f"server {server!r} is out of memory: {self}", retry_after_s=30)
        if self.reason == "stopping":
            return HttpError(503, "front_stopping", message, retry_after_s=1)
        return HttpError(502, "upstream_died", message)


class Watcher(Protocol):
    """The sender of the request that a connection carries."""

    def progress(self) -> None:
        """Something changed: look at `head_done`, `chunks`, `complete` and `error`."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Connection(asyncio.Protocol):
    """One connection. `send` begins an exchange; its watcher is called whenever part of the answer arrived."""

    transport: asyncio.Transport = dataclasses.field(init=False)
    watcher: Watcher | None = None
    address: tuple[str, int] = ("", 0)
    """The server's host and port, or the path of its unix socket and 0."""
    is_tls: bool = False
    busy: bool = False
    reused: bool = False
    received: bool = False
    """A byte of the answer has arrived."""
    status: int = 0
    headers: RawHeaders = dataclasses.field(default_factory=list)
    """All but Content-Length, which alone differs from answer to answer and is kept in `length`."""
    length: bytes | None = None
    head_done: bool = False
    complete: bool = False
    error: UpstreamError | None = None
    chunks: list[bytes] = dataclasses.field(default_factory=list)
    """Body parts that arrived and were not taken yet."""
    _buffered_bytes: int = 0
    _paused: bool = False
    _parser: httptools.HttpResponseParser = dataclasses.field(init=False)
    _head_only: bool = False
    _head_bytes: int = 0
    _informational: bool = False
    _until_eof: bool = False
    _keep_alive: bool = False
    """The answer is complete and the connection can carry another exchange."""
    _written: int = 0
    _written_before: int = 0
    """Bytes sent to the server in all, and before this exchange."""
    _repeated: RepeatedHead | None = None
    """The head of the last parsed answer as bytes, if the next one may have the same."""

    def __post_init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    # what the front does with it

    def send(self, watcher: Watcher, head: bytes, body: bytes, head_only: bool) -> None:
        """Begin an exchange. `head_only`: for HEAD, whose answer has no body whatever its headers say."""
        self.busy = True
        self.watcher = watcher
        self.received = self.head_done = self.complete = self._keep_alive = False
        self._head_only = head_only
        self._head_bytes = 0
        self._written_before = self._written
        self._written += len(head) + len(body)
        if self.is_tls:  # what is acknowledged is more than what was written
            self._written_before = acknowledged_bytes(self.transport.get_extra_info("socket")) or 0
        if len(body) < HIGH_WATER_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))

    def take(self) -> bytes:
        """The part of the body that arrived and was not taken yet."""
        data = b"".join(self.chunks)  # of one it is that one
        self.chunks.clear()
        self._buffered_bytes = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data

    def abort(self, error: UpstreamError) -> None:
        """Cut the exchange short: unread parts are dropped, and llama-server sees its client disconnect."""
        if self.complete and not self.busy:
            return
        self.watcher = None
        self.chunks.clear()
        self.complete = False
        self._fail(error)

    def finish(self) -> bool:
        """End the exchange. Returns whether the connection can carry another one; else it is closed."""
        self.busy = False
        self.watcher = None
        self.reused = True
        transport = self.transport
        if not (transport.is_closing() or self.chunks or transport.get_write_buffer_size()) and self._keep_alive:
            return True
        transport.abort()
        return False

    def is_closed(self) -> bool:
        """Whether nothing more can be sent on it."""
        return self.transport.is_closing()

    def close(self) -> None:
        """Close at once."""
        self.transport.abort()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read a part of the answer; unexpected bytes (no request, or after its answer) close the connection."""
        if not self.busy:
            self.close()
            return
        if not self.received:
            self.received = True
            start = self._repeated.body_start(data) if self._repeated is not None else 0
            if start:  # a whole answer, with the status and the headers of the last
                self.head_done = self.complete = self._keep_alive = True
                self.length = b"%d" % (len(data) - start)
                if len(data) > start:
                    self.chunks.append(data[start:])
            else:
                self._repeated = None
                if not self._parse(data):
                    return
                if self.complete and self._may_repeat():
                    self._repeated = repeated_head(data)
        elif not self._parse(data):
            return
        if self.watcher is not None:
            self.watcher.progress()

    def _parse(self, data: bytes) -> bool:
        """Parse `data`. Returns whether the watcher has something to look at."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep_alive = False
            if not self.complete:
                self._fail(UpstreamError("garbage", f"the server's answer is not HTTP: {error}"))
                return False
        if not self.head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(UpstreamError("garbage", f"the server's headers exceed {MAX_HEAD_BYTES} bytes"))
            return False
        if self._buffered_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        return True

    def _may_repeat(self) -> bool:
        """Whether the complete answer was an ordinary one, whose head the next may have too."""
        return self.status == 200 and self._keep_alive and not (self._informational or self._head_only)

    def eof_received(self) -> None:
        """The server closes: the end of an answer without a length, the failure of any other."""
        if self.busy and self.head_done and self._until_eof and not self.complete:
            self.complete = True
            self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report an exchange that was under way as failed."""
        del self._parser  # a circle: it would stay until the collector comes
        if not self.busy or self.complete:
            return
        if self.error is None:
            stale = self.reused and not self.received and not self._reached(exc)
            how = "reset" if exc is not None else "closed"
            self.error = UpstreamError("stale" if stale else "died", f"the server {how} the connection")
        self._notify()

    def _reached(self, exc: Exception | None) -> bool:
        """Whether the server may have read the request: its kernel acknowledged a byte of it.

        For a unix socket the kernel tells by the kind of close: it is an error where bytes were left unread or could
        not be sent, and a request that was not read whole was not begun.
        """
        if not self.address[1]:
            return not isinstance(exc, ConnectionResetError | BrokenPipeError)
        acknowledged = acknowledged_bytes(self.transport.get_extra_info("socket"))
        return acknowledged is None or acknowledged > self._written_before

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """A status line begins; a second one after the answer was not asked for."""
        if self.complete:
            self._keep_alive = False
            return
        self.headers = []
        self.length = None
        self._informational = self._until_eof = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are dropped."""
        if not self.head_done:
            name = name.lower()
            if name == b"content-length":
                self.length = value
            else:
                self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete, or was an interim (1xx) one."""
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
        if self.length is None and status not in (204, 304):
            self._until_eof = b"transfer-encoding" not in dict(self.headers)
        self.head_done = True
        if self._head_only:
            self.complete = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self.complete:
            self.chunks.append(body)
            self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        """The answer ends as its framing says.

        llama-server closes the connection after every stream although its head does not say so (server-http.cpp: its
        content provider returns false at the end, which cpp-httplib takes for a failed write); the next request on it
        would be lost.
        """
        if self._informational or self.complete:
            return
        self._keep_alive = self._parser.should_keep_alive()
        if self.length is None and self._keep_alive:
            lines = dict(self.headers)
            is_stream = lines.get(b"content-type", b"")[:17].lower() == b"text/event-stream"
            self._keep_alive = not (is_stream and lines.get(b"server") == b"llama.cpp")
        self.complete = True

    def _notify(self) -> None:
        if self.watcher is not None:
            self.watcher.progress()

    def _fail(self, error: UpstreamError) -> None:
        """Keep the first error, close, and have the watcher look."""
        if self.error is None:
            self.error = error
        self.close()
        self._notify()


class Pool:
    """Idle connections to one address; the one used last is taken first."""

    def __init__(self, host: str, port: int, *, max_idle: int) -> None:
        """At most `max_idle` connections are kept. `port` 0: `host` is the path of a unix socket."""
        self.address = (host, port)
        self.max_idle = max_idle
        self.idle: list[Connection] = []
        self.check: Callable[[Connection], Awaitable[None]] | None = None
        """Raises UpstreamError where a fresh connection does not lead to the expected server."""
        self.tls: ssl.SSLContext | None = None

    def take(self) -> Connection | None:
        """An idle connection that is still open."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A fresh connection to the expected server. Raises UpstreamError `unreachable` or `wrong_server`."""
        loop = asyncio.get_running_loop()
        host, port = self.address
        try:
            async with asyncio.timeout(timeout_s):
                if port:
                    _, connection = await loop.create_connection(Connection, host, port, ssl=self.tls)
                else:
                    _, connection = await loop.create_unix_connection(Connection, host)
        except TimeoutError:
            raise UpstreamError("unreachable", f"no connection within {timeout_s:g} s") from None
        except (OSError, ssl.CertificateError) as error:
            raise UpstreamError("unreachable", f"no connection: {error.strerror or error}") from None
        connection.address = self.address
        connection.is_tls = self.tls is not None
        await self._greet(connection, timeout_s)
        if connection.is_closed():  # a server that died meanwhile
            raise UpstreamError("unreachable", "it closed a connection before anything was sent")
        return connection

    async def _greet(self, connection: Connection, timeout_s: float) -> None:
        """Set up a fresh connection and check which server it leads to. Raises UpstreamError."""
        if self.address[1]:
            sock = connection.transport.get_extra_info("socket")
            expect_acknowledgements(sock)
            without_pacing(sock)
        if self.check is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.check(connection)
            except TimeoutError:
                connection.close()
                raise UpstreamError("unreachable", f"it did not say within {timeout_s:g} s who it is") from None

    def put_back(self, connection: Connection) -> None:
        """Return a connection after its exchange; an unusable or surplus one is closed."""
        if connection.finish():
            if len(self.idle) < self.max_idle and connection.address == self.address:
                self.idle.append(connection)
            else:
                connection.close()

    def forget_idle(self) -> None:
        """Close the idle connections: the server behind them has ended or changed."""
        for connection in self.idle:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                connection.close()
        self.idle.clear()

    def close(self) -> None:
        """Close idle connections now, and busy ones when their exchange ends."""
        self.max_idle = 0
        self.forget_idle()
