"""Which replica last saw a prompt's beginning, so that a conversation finds its prompt cache. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE

_LENGTHS = (256, 1024, 4096, 16384)
"""Bytes of a prompt's beginning that are remembered, the longer ones beside the shorter."""
_ENTRIES = 8192
"""Beginnings remembered, about a megabyte; the least recently used are forgotten first."""


class _Prompt(msgspec.Struct, frozen=True, gc=False):
    """The parts of a request that begin the prompt, verbatim."""

    system: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Prompt)


def beginning(body: bytes) -> bytes:
    """The beginning of a request's prompt, up to the longest that is remembered."""
    try:
        found = _DECODER.decode(body)
    except UNREADABLE:
        return b""
    parts = (found.system, found.messages, found.prompt, found.input)
    return b"".join(bytes(memoryview(part)[: _LENGTHS[-1]]) for part in parts)[: _LENGTHS[-1]]


def prefix_hashes(text: bytes) -> list[int]:
    """Hashes of the beginnings of `text`, the longest first."""
    return [hash(text[:length]) for length in reversed(_LENGTHS) if len(text) >= length]


class Sticky:
    """Prompt beginnings → the server asked last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, str] = OrderedDict()

    def server(self, beginnings: list[int]) -> str | None:
        """The server that last saw the longest of these beginnings, if any is remembered."""
        return next((self._seen[b] for b in beginnings if b in self._seen), None)

    def remember(self, beginnings: list[int], server: str) -> None:
        """`server` is asked with these beginnings."""
        seen = self._seen
        for beginning in beginnings:
            seen[beginning] = server
            seen.move_to_end(beginning)
        while len(seen) > _ENTRIES:
            seen.popitem(last=False)
