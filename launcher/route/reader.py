"""Bytes of a client → its requests, parsed by llhttp, with limits on their size. I/O-free.

llhttp validates what clients send. This adds what it leaves open: limits on the bytes of heads, bodies and trailers;
trailers that must not pass as headers; an Upgrade that is ignored without losing the body (Java's client offers h2c on
every POST).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, cast

import httptools

from launcher.ir.fleet import FrontUnit
from launcher.route.body import BIG_BYTES
from launcher.route.head import Head, RawHeaders, RepeatedHead, repeated_head
from launcher.route.problem import HttpError
from launcher.route.spool import Spool

_MAX_UPGRADES = 16
"""Pipelined requests with an Upgrade in one read: each costs a parser and a copy of the rest."""
_HEAD_BYTES = 16 * 1024
_CHUNKS_BYTES = 1024
"""Bytes parsed at a time where the end of a head or of a chunked body cannot be told in advance."""
_TURN_PIECES = 32
"""Pieces of a chunked body parsed before other connections have a turn: each chunk in them costs a call."""
_LOOK_BYTES = 64 * 1024
UNCOUNTED_BYTES = 16 * 1024
"""Bodies up to here are bounded by the number of connections, and not counted."""


class Listener(Protocol):
    """Receives the requests that were read."""

    def on_request(self, head: Head, length: bytes | None) -> None:
        """A head has arrived, with its Content-Length; the body, if any, follows."""

    def on_whole_request(self, head: Head, body: bytes) -> bool:
        """Head and body have arrived at once. Returns whether the request had its turn, not queued."""

    def on_request_complete(self, body: bytes | None) -> None:
        """The body has arrived; None where it was discarded."""

    def on_unacceptable(self, error: HttpError) -> None:
        """The request is invalid or exceeds a limit. Only the end of its body is reported after this."""


class Counter(Protocol):
    """Counts the bytes of all request bodies together."""

    def add_arriving(self, count: int) -> None:
        """Count bytes of a body that is arriving."""

    def drop_arriving(self, count: int) -> None:
        """Uncount bytes of an arriving body that was dropped."""

    def spool(self, data: bytearray) -> Spool | None:
        """A file that begins with `data` and takes the rest of its body; None while memory has room for it."""


class ReadLimits(Protocol):
    """The limits that apply now; a reload changes them."""

    unit: FrontUnit

    @property
    def held(self) -> Counter:
        """The counter of all bodies' bytes."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class RequestReader:
    """Reads the requests of one connection."""

    _listener: Listener
    _limits: ReadLimits
    place: Literal["between", "head", "body"] = "between"
    """Where in a request the next bytes belong."""
    failed: bool = False
    """Nothing more is read: what came cannot be parsed, or the connection is closed."""
    discards: bool = False
    """The body that is arriving is dropped."""
    head_is_new: bool = False
    """A head began since this was last unset."""
    _parser: httptools.HttpRequestParser = dataclasses.field(init=False)
    _url: bytes = b""
    _headers: RawHeaders = dataclasses.field(default_factory=list)
    _length: bytes | None = None
    _head: Head | None = None
    """The last request's head."""
    _repeated: RepeatedHead | None = None
    """The last request's head as bytes, if that request came whole, was plain, and nothing came after it."""
    _body: bytes | bytearray | Spool = b""
    size: int = 0
    """Bytes of the present body that have arrived."""
    counted: int = 0
    """How many of them are counted."""
    unread: bytes = b""
    """Bytes behind a whole request (pipelining): call `go_on`."""
    _at: int = 0
    """Where in `unread` the next request begins."""
    _read_bytes: int = 0
    _head_bytes: int = 0
    _silent_bytes: int = 0
    """Bytes of this read, of this head, and of chunk framing and trailers since the last body content."""
    _message_ended: bool = False
    """A request has ended in this read."""
    _head_shares_read: bool = False
    """The present head began in the read in which another request ended."""
    _replaying: bool = False

    def __post_init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> bool:
        """Read up to the end of one request; pipelined ones are read in turn with other connections.

        Returns True where that was one whole request that had its turn: nothing is left to do.
        """
        if self._repeated is not None:
            start = self._repeated.body_start(data)
            if start and len(data) - start <= self._limits.unit.max_body_bytes and self._head is not None:
                return self._listener.on_whole_request(self._head, data[start:])
        if self.unread:
            self.unread = self.unread[self._at :] + data
            self._at = 0
        elif not self.failed:
            self._read(data, 0)
        return False

    def go_on(self) -> None:
        """Read one more pipelined request."""
        data, self.unread = self.unread, b""
        self._read(data, self._at)

    def _read(self, data: bytes, at: int) -> None:
        """Parse `data` from `at` on in pieces until a request ends; keep the rest in `unread`."""
        whole = at == 0 and self.place == "between"
        self._repeated = None
        pieces = 0
        while at < len(data) and not self.failed and pieces < _TURN_PIECES:
            end = min(len(data), self._piece_end(data, at))
            self._parse(data if end - at == len(data) else data[at:end])
            at, pieces = end, pieces + 1
            if self._message_ended:
                break
        if self.failed:
            return
        if at < len(data):
            self.unread, self._at = data, at
        elif whole and self.place == "between" and self._head is not None and self._head.is_plain:
            self._repeated = repeated_head(data)

    def _piece_end(self, data: bytes, at: int) -> int:
        """The end of a piece that begins at `at`: that of its head or body, where it can be told."""
        if self.place != "body":
            end = data.find(b"\r\n\r\n", at, at + _HEAD_BYTES)
            return at + _HEAD_BYTES if end < 0 else end + 4
        left = int(self._length) - self.size if self._length is not None else 0
        return at + (left if left > 0 else _CHUNKS_BYTES)

    def _parse(self, data: bytes) -> None:
        self._read_bytes = len(data)
        self._message_ended = False
        if self.place == "body":
            self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            raise  # a bug of ours
        except httptools.HttpParserError:
            self._fail(HttpError(400, "invalid_http", "the request is not valid HTTP", close=True))
        if self.place != "between" and not self.failed:
            self._check_sizes()

    def discard(self) -> None:
        """Drop the present body, what came of it and what still comes."""
        self.forget()
        self.discards = True

    def forget(self) -> None:
        """Free what is held of the present body."""
        self._body = b""
        counted, self.counted = self.counted, 0
        if counted:
            self._limits.held.drop_arriving(counted)

    def close(self) -> None:
        """The connection has ended: break the reference cycles, which would stay until a garbage collection."""
        self.forget()
        self.failed = True
        self.unread = b""
        self._repeated = None
        del self._parser, self._listener

    def _check_sizes(self) -> None:
        """Refuse a head, or trailers and chunk extensions, beyond `max_header_bytes`."""
        if self.place == "head":
            if not self._head_shares_read:
                self._head_bytes += self._read_bytes
            self._head_shares_read = False
            if self._head_bytes > self._limits.unit.max_header_bytes:
                self._refuse_head()
        elif self._silent_bytes > self._limits.unit.max_header_bytes:
            self._refuse_head()

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on as if no Upgrade had been asked for. `rest`: the body that llhttp left unread, and more."""
        for _ in range(_MAX_UPGRADES):
            if self.failed:
                return
            framing = [n + b": " + v for n, v in self._headers if n == b"transfer-encoding"]
            if self._length is not None:
                framing.append(b"content-length: " + self._length)
            self._replaying = True
            self._parser = httptools.HttpRequestParser(self)
            data = b"\r\n".join((b"POST / HTTP/1.1", *framing, b"", b"")) + rest
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            except httptools.HttpParserCallbackError:
                raise
            except httptools.HttpParserError:
                self._fail(HttpError(400, "invalid_http", "the request is not valid HTTP", close=True))
                return
            else:
                return
        self._fail(HttpError(400, "invalid_http", "too many requests at once ask for an upgrade", close=True))

    def _refuse_head(self) -> None:
        message = f"the headers exceed {self._limits.unit.max_header_bytes} bytes (max_header_bytes)"
        self._fail(HttpError(431, "headers_too_large", message, close=True))

    def _fail(self, error: HttpError) -> None:
        """Stop reading: nothing that follows can be parsed."""
        if not self.failed:
            self.failed = True
            self.unread = b""
            self._listener.on_unacceptable(error)

    # --- httptools' callbacks ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._replaying:
            return
        self.place = "head"
        self.head_is_new = True
        self._head_shares_read = self._message_ended
        self._head_bytes = 0
        self._url = b""
        self._headers = []
        self._length = None

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        if not self._replaying:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are dropped, so that none passes as a header."""
        if self.place == "head":
            name = name.lower()
            if name == b"content-length":
                self._length = value
            else:
                self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete: report the request, unless its head is too big."""
        if self._replaying or self.failed:
            return
        self.place = "body"
        self._silent_bytes = self.size = 0
        self.discards = False
        limit = self._limits.unit.max_header_bytes
        if self._head_bytes + self._read_bytes > limit and self._head_size() > limit:
            self._refuse_head()
            return
        parser, head = self._parser, self._head
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        if head is None or not head.matches(method, self._url, version, self._headers):
            keep_alive = parser.should_keep_alive()
            try:
                head = self._head = Head(method, self._url, version, self._headers, keep_alive=keep_alive)
            except HttpError as error:
                self._fail(error)
                return
        self._listener.on_request(head, self._length)

    def _head_size(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._silent_bytes = 0
        self.size += len(body)
        if self.discards or self.failed:
            return
        if self.size > self._limits.unit.max_body_bytes:
            self.discard()
            self._listener.on_unacceptable(too_large(self._limits.unit.max_body_bytes))
            return
        if self.size > UNCOUNTED_BYTES:
            self._limits.held.add_arriving(self.size - self.counted)
            self.counted = self.size
        kept = self._body
        if isinstance(kept, bytearray):
            kept += body
            if self.size > BIG_BYTES and self.size % _LOOK_BYTES < len(body):  # not for each of tiny chunks
                self._body = self._limits.held.spool(kept) or kept
        elif isinstance(kept, Spool):
            self._body = _added(kept, body)
        else:
            self._body = bytearray(kept + body) if kept else body

    def on_message_complete(self) -> None:
        """The request ends. One with an Upgrade only seems to: its body is still to come."""
        if self.failed or (self._parser.should_upgrade() and not self._replaying):
            return
        self._replaying = False
        self.place = "between"
        self._message_ended = True
        body, self._body = self._body, b""
        self._listener.on_request_complete(None if self.discards else _whole(body))


def _added(spool: Spool, body: bytes) -> Spool | bytearray:
    """`spool` with `body` added; in memory again where the disk takes no more."""
    try:
        spool.add(body)
    except OSError:
        return spool.content()
    return spool


def _whole(body: bytes | bytearray | Spool) -> bytes:
    """The body as handlers take it: `bytes`, or any buffer for a big one."""
    if isinstance(body, Spool):
        try:
            return body.whole()
        except OSError:
            body = body.content()
    return bytes(body) if len(body) <= BIG_BYTES else cast("bytes", body)


def too_large(limit_bytes: int, which: str = "(max_body_bytes)") -> HttpError:
    """413: the body exceeds the limit."""
    return HttpError(413, "body_too_large", f"the body exceeds {limit_bytes} bytes {which}", close=True)
