"""Headers on their way through: what is read, what is forwarded, what stays on its hop. Pure."""

from __future__ import annotations

import re
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING

from launcher.route.asgi import RawHeaders, Scope
from launcher.route.problem import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable

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
"""Headers that concern one connection only (RFC 9110 7.6.1), and those we answer ourselves."""
_READ_ONLY = frozenset(
    {
        b"authorization",
        b"content-length",
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
"""Read here and not passed on: keys end at the front, the upstream is not a browser's peer."""
_READ_AND_FORWARDED = frozenset({b"content-type"})
_DROPPED_FROM_RESPONSE = HOP_BY_HOP | {b"server", b"date", b"x-accel-buffering", b"x-request-id", b"x-launch-server"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SINGLE = (_READ_ONLY - {b"content-length", b"x-request-id"}) | _READ_AND_FORWARDED


class RequestIds:
    """Makes request ids: unique per process start, in order."""

    def __init__(self) -> None:
        """A random prefix, then a counter."""
        self.fresh: Callable[[], bytes] = map(f"req-{token_hex(6)}-%x".encode().__mod__, count(1)).__next__
        """Gives a new id."""

    def accept(self, given: bytes | None) -> str:
        """The client's own id when it is short and plain, else a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return self.fresh().decode("ascii")


class Request:
    """One client request: what routing and guarding read of it, and the header lines that are forwarded."""

    __slots__ = ("_twice", "body", "forwarded", "id", "method", "path", "query", "raw_path", "seen", "version")

    def __init__(self, scope: Scope) -> None:
        """Read an ASGI http scope."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.version: str = scope["http_version"]
        self.seen: dict[bytes, bytes] = {}
        self.forwarded: RawHeaders = []
        self.body = b""
        self.id = ""
        self._twice: bytes | None = None
        self._read(scope["headers"])

    def _read(self, headers: RawHeaders) -> None:
        """Sort headers into read, forwarded and dropped."""
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
        """HttpError for a method or target that no upstream of ours serves, and for a header that may occur once."""
        if self._twice is not None:
            raise HttpError(400, "duplicate_header", f"{self._twice.decode()} is given twice", close=True)
        if self.method not in _METHODS:
            raise HttpError(405, "method_not_allowed", f"{self.method} is not served", close=True)
        coding = self.seen.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            shown = coding[:40].decode("latin-1")
            raise HttpError(501, "unknown_coding", f"Transfer-Encoding {shown!r} is not understood", close=True)
        if not self.raw_path.startswith(b"/"):
            raise HttpError(400, "invalid_target", "the request target is not a path", close=True)

    @property
    def has_body(self) -> bool:
        """Whether a body was announced."""
        return b"transfer-encoding" in self.seen or self.seen.get(b"content-length", b"0") != b"0"

    def content_length(self) -> int | None:
        """The announced length in bytes; None when chunked."""
        text = self.seen.get(b"content-length")
        return None if text is None else int(text)


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """Header names that a Connection header declares hop-by-hop."""
    tokens = {t.strip().lower() for t in value.split(b",")}
    return frozenset(tokens - {b"close", b"keep-alive", b"upgrade", b""})


def request_head(request: Request, authority: bytes, body_bytes: int, own: bytes = b"") -> bytes:
    """The head that goes upstream, up to and with the blank line; a body of `body_bytes` follows.

    `own` are header lines that the front itself adds for this server.
    """
    target = request.raw_path + b"?" + request.query if request.query else request.raw_path
    parts = [request.method.encode(), b" ", target, b" HTTP/1.1\r\nhost: ", authority, b"\r\n", own]
    for name, value in request.forwarded:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"x-request-id: ", request.id.encode(), b"\r\n")
    if body_bytes or request.method in ("POST", "PUT", "PATCH"):
        parts += (b"content-length: ", str(body_bytes).encode(), b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def response_headers(upstream: RawHeaders, server: bytes, request_id: str) -> tuple[RawHeaders, bool]:
    """Headers for the client, and whether the body is a stream of server-sent events.

    The upstream's CORS headers are dropped: which pages may read an answer is decided at the front.
    """
    named: frozenset[bytes] = frozenset()
    for name, value in upstream:
        if name == b"connection":
            named |= connection_tokens(value)
    is_events = False
    headers: RawHeaders = []
    for name, value in upstream:
        if name in _DROPPED_FROM_RESPONSE or name in named or name.startswith(b"access-control-"):
            continue
        if name == b"content-type" and value[:17].lower() == b"text/event-stream":
            is_events = True
        headers.append((name, value))
    headers.append((b"x-launch-server", server))
    headers.append((b"x-request-id", request_id.encode()))
    if is_events:
        # chunked, so that an error event can still be added where the upstream dies
        headers = [(n, v) for n, v in headers if n != b"content-length"]
        headers.append((b"x-accel-buffering", b"no"))
    return headers, is_events


def cors_headers(origin: bytes | None) -> RawHeaders:
    """What lets an allowed page read the answer; nothing for programs."""
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (
            b"access-control-expose-headers",
            b"x-request-id, x-launch-server, x-launch-decision, x-generation-id, retry-after",
        ),
        (b"vary", b"origin"),
    ]


def preflight_headers(request: Request) -> RawHeaders:
    """What a browser asks before it sends: any method and header that we read or forward."""
    wanted = dict(request.forwarded).get(b"access-control-request-headers", b"authorization, content-type")
    return [
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    ]
