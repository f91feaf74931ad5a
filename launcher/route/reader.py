"""Bytes of a client → its requests, parsed by llhttp, within limits on what each may hold. I/O-free.

llhttp judges what strangers send. Here is what it leaves open: limits on a head's and a body's bytes, and on trailers;
trailers that do not pass as headers; an Upgrade that is ignored without losing the body (Java's client offers h2c on
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
"""Requests with an Upgrade in one piece: each costs a parser and a copy of the rest."""
_HEAD_BYTES = 16 * 1024
_CHUNKS_BYTES = 1024
"""Parsed at a time where nothing tells where a head or a chunked body ends."""
_TURN_PIECES = 32
"""Pieces of a chunked body that are parsed before others have a turn: each chunk in them costs a call."""
_LOOK_BYTES = 64 * 1024
UNCOUNTED_BYTES = 16 * 1024
"""Bodies up to here are bounded by the number of connections, and not counted."""


class Listener(Protocol):
    """Who is told of requests."""

    def on_request(self, head: Head, length: bytes | None) -> None:
        """A head has come, with its Content-Length; the body is still to come, if there is one."""

    def on_whole_request(self, head: Head, body: bytes) -> bool:
        """Both at once; whether nothing is left to see to."""

    def on_request_complete(self, body: bytes | None) -> None:
        """Its body has come, too; None where it was discarded."""

    def on_unacceptable(self, error: HttpError) -> None:
        """What comes is no request, or exceeds a limit. Nothing is told of what follows, but of a body's end."""


class Counter(Protocol):
    """Who counts the bytes of all bodies together."""

    def came(self, count: int) -> None:
        """So many more of a body under way are held."""

    def went(self, count: int) -> None:
        """So many of a body under way are not held any more."""

    def spool(self, data: bytearray) -> Spool | None:
        """A file that begins with `data` and takes the rest of its body; None while memory has room for it."""


class ReadLimits(Protocol):
    """Who knows the limits that hold now."""

    unit: FrontUnit

    @property
    def held(self) -> Counter:
        """Counts the bytes of all bodies."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class RequestReader:
    """Reads the requests of one connection."""

    _listener: Listener
    _limits: ReadLimits
    place: Literal["between", "head", "body"] = "between"
    """Where in a request the bytes that come next are."""
    failed: bool = False
    """What comes is not read any more."""
    discards: bool = False
    """The body that comes is dropped."""
    head_is_new: bool = False
    """A head began since whoever looks here unset it."""
    _parser: httptools.HttpRequestParser = dataclasses.field(init=False)
    _url: bytes = b""
    _headers: RawHeaders = dataclasses.field(default_factory=list)
    _length: bytes | None = None
    _head: Head | None = None
    """The last request's."""
    _repeated: RepeatedHead | None = None
    """Its bytes, if that request came whole and had nothing unusual, and all that came was read."""
    _body: bytes | bytearray | Spool = b""
    size: int = 0
    """What is kept of the body, and how much has come of it."""
    counted: int = 0
    """How many of them are counted."""
    unread: bytes = b""
    """What came behind a whole request: call `go_on`."""
    _at: int = 0
    """Where in it the next begins."""
    _read_bytes: int = 0
    _head_bytes: int = 0
    _silent_bytes: int = 0
    """Bytes of this read, of this head, and of what is neither a head nor a body's content."""
    _message_ended: bool = False
    """A message has ended in this read."""
    _head_shares_read: bool = False
    """The head began behind the end of another message, in the same read."""
    _replaying: bool = False

    def __post_init__(self) -> None:
        """It parses for itself."""
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> bool:
        """Read what came, up to the end of a request: whoever sends thousands at once has them read in turns.

        Whether it was one whole request and nothing is left to see to.
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
        """Read one more request of what came."""
        data, self.unread = self.unread, b""
        self._read(data, self._at)

    def _read(self, data: bytes, at: int) -> None:
        """Parse `data` from `at` on in pieces, until a request ends; keep the rest."""
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
        """Where a piece that begins at `at` ends: with its head or its body, where that can be seen."""
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
        """Drop what came and still comes of the body."""
        self.forget()
        self.discards = True

    def forget(self) -> None:
        """Hold nothing of the body under way."""
        self._body = b""
        counted, self.counted = self.counted, 0
        if counted:
            self._limits.held.went(counted)

    def close(self) -> None:
        """The connection is gone. What refers to it in a circle would stay until the collector comes, minutes later."""
        self.forget()
        self.failed = True
        self.unread = b""
        self._repeated = None
        del self._parser, self._listener

    def _check_sizes(self) -> None:
        """Refuse a head, or trailers and extensions of chunks, that grow without end."""
        if self.place == "head":
            if not self._head_shares_read:
                self._head_bytes += self._read_bytes
            self._head_shares_read = False
            if self._head_bytes > self._limits.unit.max_header_bytes:
                self._refuse_head()
        elif self._silent_bytes > self._limits.unit.max_header_bytes:
            self._refuse_head()

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on as if no Upgrade had been asked for: `rest` is the body that llhttp left unread, and what follows."""
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
        """Nothing that follows can be read as a request."""
        if not self.failed:
            self.failed = True
            self.unread = b""
            self._listener.on_unacceptable(error)

    # --- httptools' callbacks ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A head begins."""
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
        """A part of the target."""
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
        """The head is known: the request begins, unless its head is too big."""
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
        """A part of a body."""
        self._silent_bytes = 0
        self.size += len(body)
        if self.discards or self.failed:
            return
        if self.size > self._limits.unit.max_body_bytes:
            self.discard()
            self._listener.on_unacceptable(too_large(self._limits.unit.max_body_bytes))
            return
        if self.size > UNCOUNTED_BYTES:
            self._limits.held.came(self.size - self.counted)
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
        """The request ends; one that asks for an upgrade only seems to, its body is still to come."""
        if self.failed or (self._parser.should_upgrade() and not self._replaying):
            return
        self._replaying = False
        self.place = "between"
        self._message_ended = True
        body, self._body = self._body, b""
        self._listener.on_request_complete(None if self.discards else _whole(body))


def _added(spool: Spool, body: bytes) -> Spool | bytearray:
    """`body` behind the rest in a file; in memory where the disk takes no more."""
    try:
        spool.add(body)
    except OSError:
        return spool.content()
    return spool


def _whole(body: bytes | bytearray | Spool) -> bytes:
    """What came, as who reads bodies takes it: big ones are any buffer."""
    if isinstance(body, Spool):
        try:
            return body.whole()
        except OSError:
            body = body.content()
    return bytes(body) if len(body) <= BIG_BYTES else cast("bytes", body)


def too_large(limit_bytes: int, which: str = "(max_body_bytes)") -> HttpError:
    """The answer to a body beyond the limit."""
    return HttpError(413, "body_too_large", f"the body exceeds {limit_bytes} bytes {which}", close=True)
