"""Heads that come again: the same bytes as last time on this connection, but for the digits of Content-Length. Pure.

A client's requests, and a server's answers, differ on a kept-alive connection in their bodies only. llhttp has judged
the head once; bytes that are equal need not be judged again.
"""

from __future__ import annotations

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,8})[ \t]*\r\n", re.IGNORECASE)


class RepeatedHead:
    """A head that was parsed once, as what stands before and after the digits of its Content-Length."""

    __slots__ = ("_after", "_before", "_fixed", "head", "size", "start")

    def __init__(self, before: bytes, after: bytes) -> None:
        """`after` ends with the blank line."""
        self._before = before
        self._after = after
        self._fixed = len(before) + len(after)
        self.size = -1
        self.head = b""
        self.start = 0
        """Bytes of the last message, its head and the head's bytes: another message of that size has the same head."""

    def body_start(self, data: bytes) -> int:
        """Where the body begins, if `data` is this head again and the whole of its body and nothing more; else 0."""
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
    """What to compare later messages with, if `data` is one whole message with a Content-Length."""
    head_end = data.find(b"\r\n\r\n") + 4
    if head_end < 4:
        return None
    match = _LENGTH.search(data, 0, head_end)
    if match is None or len(data) != head_end + int(match[1]):
        return None
    return RepeatedHead(data[: match.start(1)], data[match.end(1) : head_end])
