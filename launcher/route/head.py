"""The head of a request: what the front reads of it, what is forwarded, what ends at this hop. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from secrets import token_hex
from urllib.parse import unquote

import httptools

from launcher.route.endpoint import kind_of
from launcher.route.framing import framing_of
from launcher.route.keys import ALLOW_ALL
from launcher.route.problem import HttpError

RawHeaders = list[tuple[bytes, bytes]]
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that concern one connection only (RFC 9110 7.6.1), and those that the front answers itself."""
_READ_ONLY = frozenset(
    {
        b"authorization",
        b"cookie",
        b"host",
        b"origin",
        b"x-api-key",
        b"x-generation-id",
        b"x-model",
        b"x-project",
        b"x-request-id",
        b"x-task-type",
        b"x-validation-policy",
    }
)
"""Read here and not forwarded: keys and cookies end at the front, and the upstream is not a browser's peer."""
_READ_AND_FORWARDED = frozenset({b"content-type", b"content-encoding", b"x-conversation-id"})
_SINGLE = (_READ_ONLY - {b"x-request-id", b"cookie"}) | _READ_AND_FORWARDED
_UNUSUAL = frozenset({b"expect", b"transfer-encoding", b"upgrade"})
_DROPPED_FROM_ANSWER = HOP_BY_HOP | {b"server", b"date", b"x-accel-buffering", b"x-request-id", b"x-launch-server"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_TARGET_BYTES = 32_000
MAX_LINE_BYTES = 8_000
MAX_LINES = 96
"""llama-server's limits (cpp-httplib: a target of 32 KiB, 100 lines of 8 KiB), less what the front adds. It closes the
connection on a longer target without an answer."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,8})[ \t]*\r\n", re.IGNORECASE)
new_request_id = map(f"req-{token_hex(6)}-%x".encode().__mod__, count(1)).__next__
"""Returns a new request id: a random prefix of this process, then a counter."""


class Head:
    """A request's head without its Content-Length.

    Clients send the same lines with every request of a connection, but for the length: one comparison (`matches`) then
    replaces parsing, sorting and checking them again.
    """

    __slots__ = (
        "_twice",
        "checked",
        "content_type",
        "conversation",
        "cors",
        "expects_continue",
        "forwarded",
        "grant",
        "headers",
        "in_parts",
        "is_anthropic",
        "is_json",
        "is_plain",
        "is_safe",
        "keep_alive",
        "kind",
        "lines",
        "method",
        "passes",
        "path",
        "purpose",
        "query",
        "raw_path",
        "request_id",
        "seen",
        "start",
        "takes_slot",
        "url",
        "version",
        "with_length",
    )

    def __init__(self, method: str, url: bytes, version: str, headers: RawHeaders, *, keep_alive: bool) -> None:
        """Header names are in lower case. Raises HttpError 400 for a target that is no URL."""
        self.method = method
        self.url = url
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.raw_path, self.query = _parsed(method, url)
        self.path = self.raw_path.decode("ascii")
        if "%" in self.path:
            if _NO_ESCAPE.search(self.path):  # llama-server takes %u0073 for an s, and so passes what is kept from it
                message = "in the target's path a % is not followed by two hexadecimal digits"
                raise HttpError(400, "invalid_target", message, close=True)
            self.path = unquote(self.path)
        self.seen: dict[bytes, bytes] = {}
        self.forwarded: RawHeaders = []
        self._twice: bytes | None = None
        self._read(headers)
        seen = self.seen
        if version == "1.0" and b"transfer-encoding" in seen:
            self.keep_alive = False  # HTTP/1.0 knows none: whoever is between may take the rest for a request
        given = seen.get(b"x-request-id")
        self.request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else None
        """The client's own id, where it is short and plain."""
        self.content_type = seen.get(b"content-type", b"")
        self.is_json = self.content_type[:16].lower() == b"application/json"
        self.expects_continue = version == "1.1" and seen.get(b"expect", b"").lower() == b"100-continue"
        self.is_plain = seen.keys().isdisjoint(_UNUSUAL)
        """llhttp needs only the Content-Length to find its body."""
        self.is_safe = method in ("GET", "HEAD")  # it changes nothing (RFC 9110 9.2.1)
        self.kind = kind_of(method, self.path)
        self.takes_slot = self.kind != ""
        self.is_anthropic = self.path.startswith("/v1/messages")
        close = not self.keep_alive
        self.with_length = framing_of(200, method, version, known_length=True, close=close)
        self.in_parts = framing_of(200, method, version, known_length=False, close=close)
        """How an answer with status 200 is framed, if its length is known or not."""
        self.conversation = seen.get(b"x-conversation-id", b"").strip() if self.takes_slot else b""
        """The id under which llama-server keeps the stream for a client that comes back."""
        target = self.raw_path + b"?" + self.query if self.query else self.raw_path
        self.start = b"%b %b HTTP/1.1\r\nhost: " % (method.encode(), target)
        self.lines = b"\r\n%bx-request-id: " % lines_of(self.forwarded)
        self.checked: object = None
        """The view under which the front accepted it; `grant`, `cors` and `purpose` are of that check."""
        self.passes: object = None
        """The same view, if a server answers it and nothing else has to be looked at."""
        self.grant = ALLOW_ALL
        self.cors = b""
        self.purpose = ""

    def matches(self, method: str, url: bytes, version: str, headers: RawHeaders) -> bool:
        """Whether a request with these has this head."""
        return self.headers == headers and self.url == url and self.method == method and self.version == version

    def _read(self, headers: RawHeaders) -> None:
        """Sort header lines into read, forwarded and dropped ones."""
        seen, forwarded = self.seen, self.forwarded
        for name, value in headers:
            if name in _READ_ONLY or name in _READ_AND_FORWARDED:
                if name in seen and name in _SINGLE:
                    self._twice = name
                seen[name] = value
                if name in _READ_ONLY:
                    continue
            elif name in HOP_BY_HOP:
                seen[name] = seen[name] + b"," + value if name in seen else value
                continue
            forwarded.append((name, value))
        if b"connection" in seen:
            named = connection_tokens(seen[b"connection"])
            if named:
                self.forwarded = [(n, v) for n, v in forwarded if n not in named]

    def refuse_unusable(self) -> None:
        """Raises HttpError for a method or target that no upstream serves, and for a repeated single header."""
        if self._twice is not None:
            raise HttpError(400, "duplicate_header", f"{self._twice.decode()} is given twice", close=True)
        if self.method not in _METHODS:
            raise HttpError(405, "method_not_allowed", f"{self.method} is not served", close=True)
        coding = self.seen.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            shown = coding[:40].decode("latin-1")
            raise HttpError(501, "unknown_coding", f"Transfer-Encoding {shown!r} is not understood", close=True)
        content_coding = self.seen.get(b"content-encoding", b"").strip().lower()
        if content_coding not in (b"", b"identity"):
            shown = content_coding[:40].decode("latin-1")
            message = f"bodies with Content-Encoding {shown!r} are not read, by llama-server neither: send it as it is"
            raise HttpError(415, "unsupported_encoding", message)
        if len(self.url) > MAX_TARGET_BYTES:
            message = f"the request target exceeds {MAX_TARGET_BYTES} bytes"
            raise HttpError(414, "target_too_long", message, close=True)
        if len(self.forwarded) > MAX_LINES:
            message = f"there are more than {MAX_LINES} header lines"
            raise HttpError(431, "too_many_headers", message, close=True)
        if any(len(name) + len(value) > MAX_LINE_BYTES for name, value in self.forwarded):
            message = f"a header line exceeds {MAX_LINE_BYTES} bytes"
            raise HttpError(431, "headers_too_large", message, close=True)
        if not self.raw_path.startswith(b"/"):
            raise HttpError(400, "invalid_target", "the request target is not a path", close=True)

    def for_upstream(self, authority: bytes, request_id: bytes, own: bytes, body_bytes: int) -> bytes:
        """The head for the upstream, with the blank line; a body of `body_bytes` follows.

        `own`: header lines that the front adds for this server.
        """
        if self.is_safe and not body_bytes:
            return b"".join((self.start, authority, self.lines, request_id, b"\r\n", own, b"\r\n"))
        length = b"content-length: %d\r\n\r\n" % body_bytes
        return b"".join((self.start, authority, self.lines, request_id, b"\r\n", own, length))

    def preflight(self) -> bytes:
        """Header lines that allow a browser any method, and any header that is read or forwarded."""
        wanted = dict(self.forwarded).get(b"access-control-request-headers", b"authorization, content-type")
        return (
            b"access-control-allow-methods: GET, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
            b"access-control-allow-headers: %b\r\naccess-control-max-age: 600\r\n" % wanted
        )


def _parsed(method: str, url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target. Raises HttpError 400."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    path = b"" if parsed is None else parsed.path or b"/"
    if parsed is None or method == "CONNECT" or not path.isascii():
        raise HttpError(400, "invalid_http", "the request target is not valid", close=True)
    return path, parsed.query or b""


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as lines."""
    return b"".join(b"%b: %b\r\n" % line for line in headers)


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """The headers that a Connection header declares hop-by-hop."""
    tokens = {t.strip().lower() for t in value.split(b",")}
    return frozenset(tokens - {b"close", b"keep-alive", b"upgrade", b""})


def cors_lines(origin: bytes) -> bytes:
    """Header lines that let an allowed page read the answer."""
    return (
        b"access-control-allow-origin: %b\r\naccess-control-expose-headers: x-request-id, request-id, x-launch-server, "
        b"x-launch-decision, x-generation-id, retry-after\r\nvary: origin\r\n" % origin
    )


class AnswerHead:
    """The head of an upstream's answer for clients, made once for all answers with the same lines.

    Content-Length and request id are added to each. The upstream's CORS headers are dropped: the front decides which
    pages may read an answer.
    """

    __slots__ = ("came", "is_events", "lines", "status")

    def __init__(self, status: int, came: RawHeaders, server: bytes) -> None:
        """`came`: the upstream's header lines; `server`: the name to show for it, b"" for none."""
        named: frozenset[bytes] = frozenset()
        for name, value in came:
            if name == b"connection":
                named |= connection_tokens(value)
        kept: RawHeaders = []
        self.is_events = False
        """Server-sent events, forwarded in chunks so that an error can be added where the upstream dies."""
        for name, value in came:
            if name in _DROPPED_FROM_ANSWER or name in named or name.startswith(b"access-control-"):
                continue
            if name == b"content-type" and value[:17].lower() == b"text/event-stream":
                self.is_events = True
            kept.append((name, value))
        if server:
            kept.append((b"x-launch-server", server))
        if self.is_events:
            kept.append((b"x-accel-buffering", b"no"))
        self.status = status
        self.came = came
        self.lines = lines_of(kept) + b"x-request-id: "


class RepeatedHead:
    """A head that was parsed once, as the bytes before and after the digits of its Content-Length.

    On a kept-alive connection requests, and answers, usually differ in their bodies only. llhttp has validated the head
    once; equal bytes need not be validated again.
    """

    __slots__ = ("_after", "_before", "_fixed", "head", "size", "start")

    def __init__(self, before: bytes, after: bytes) -> None:
        """`after` ends with the blank line."""
        self._before = before
        self._after = after
        self._fixed = len(before) + len(after)
        self.size = -1
        self.head = b""
        self.start = 0
        """Size of the last message, its head, and the head's size: a message of that size has the same head."""

    def body_start(self, data: bytes) -> int:
        """Where the body begins, if `data` is this head again with its whole body and nothing more; else 0."""
        size = len(data)
        if size == self.size:
            return self.start if data.startswith(self.head) else 0
        left = size - self._fixed  # the digits, and the body that they count
        length = left - len(b"%d" % left)
        if length < 0:
            return 0
        head = b"%b%d%b" % (self._before, length, self._after)
        # where the body is one digit shorter than digits and body together, llhttp reads the head
        if len(head) + length != size or not data.startswith(head):
            return 0
        self.size, self.head, self.start = size, head, len(head)
        return self.start


def repeated_head(data: bytes) -> RepeatedHead | None:
    """For comparing later messages with `data`, if that is one whole message with a Content-Length."""
    head_end = data.find(b"\r\n\r\n") + 4
    if head_end < 4:
        return None
    match = _LENGTH.search(data, 0, head_end)
    if match is None or len(data) != head_end + int(match[1]):
        return None
    return RepeatedHead(data[: match.start(1)], data[match.end(1) : head_end])
