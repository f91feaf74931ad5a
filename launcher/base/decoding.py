"""JSON that somebody else wrote. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `msgspec.json.decode` raises: for what is no JSON or of another shape, no UTF-8, nested too deeply."""


def decoded(data: bytes | str, kind: type[T]) -> T | None:
    """`data` as a `kind`; None where it cannot be read as one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        return None
