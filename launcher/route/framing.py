"""How an answer is framed: by its length, in chunks, or by the connection's end. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from launcher.route.head import Head
from launcher.route.problem import HttpError

STATUS_LINES = {status: b"HTTP/1.1 %d \r\n" % status for status in range(100, 600)}
STATUS_LINES |= {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Framing(NamedTuple):
    """Header lines with the blank one, and what they mean."""

    lines: bytes
    chunked: bool
    has_body: bool
    close: bool
    """The connection ends with the answer."""


def framing_of(status: int, length: bytes | None, head: Head | None, *, close: bool) -> Framing:
    """Of the answer to a request with this `head`, None for one that could not be read; `length` None: not known."""
    lines = b""
    chunked = False
    has_body = status not in (204, 304)
    if has_body and length is not None:
        lines = b"content-length: %b\r\n" % length
    if head is not None and head.method == "HEAD":
        has_body = False
    elif has_body and length is None:
        if head is None or head.version == "1.1":
            chunked = True
            lines = b"transfer-encoding: chunked\r\n"
        else:
            close = True  # HTTP/1.0 knows no chunks: the answer ends with its connection
    if close or head is None or not head.keep_alive:
        return Framing(lines + b"connection: close\r\n\r\n", chunked, has_body, True)
    return Framing(lines + b"\r\n", chunked, has_body, False)


PLAIN = Framing(b"\r\n", False, True, False)


def error_lines(error: HttpError, request_id: bytes, more: bytes) -> bytes:
    """Header lines of an error of the front; `more` go with them."""
    lines = b"content-type: application/json\r\n" + more
    if request_id:
        lines += b"x-request-id: %b\r\n" % request_id
    if error.retry_after is not None:
        lines += b"retry-after: %b\r\n" % error.retry_after
    if error.status == 401:
        lines += b"www-authenticate: Bearer\r\n"
    return lines
