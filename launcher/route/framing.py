"""How an answer is framed: by its length, in chunks, or by the connection's end. Pure."""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import NamedTuple

from launcher.route.problem import HttpError

STATUS_LINES = {status: b"HTTP/1.1 %d \r\n" % status for status in range(100, 600)}
STATUS_LINES |= {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Framing(NamedTuple):
    """How an answer's body is framed."""

    lines: bytes
    """The header lines for it, with the blank line; Content-Length is apart."""
    has_length: bool
    chunked: bool
    has_body: bool
    close: bool
    """The connection ends with the answer."""


@functools.lru_cache(maxsize=128)
def framing_of(status: int, method: str, version: str, *, known_length: bool, close: bool) -> Framing:
    """The framing of an answer; `known_length`: its length is known, `close`: the connection ends with it."""
    may_have_body = status not in (204, 304)
    has_body = may_have_body and method != "HEAD"
    chunked = has_body and not known_length and version == "1.1"
    if has_body and not known_length and not chunked:
        close = True  # HTTP/1.0 knows no chunks: the answer ends with its connection
    lines = (b"transfer-encoding: chunked\r\n" if chunked else b"") + (b"connection: close\r\n" if close else b"")
    return Framing(lines + b"\r\n", may_have_body and known_length, chunked, has_body, close)


PLAIN = framing_of(200, "POST", "1.1", known_length=True, close=False)


def error_lines(error: HttpError, request_id: bytes, more: bytes) -> bytes:
    """Header lines of an error answer; `more` are further ones."""
    lines = b"content-type: application/json\r\n" + more
    if request_id:
        lines += b"x-request-id: %b\r\n" % request_id
    if error.retry_after is not None:
        lines += b"retry-after: %b\r\n" % error.retry_after
    if error.status == 401:
        lines += b"www-authenticate: Bearer\r\n"
    return lines
