"""Decode JSON that another program wrote. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions of `msgspec.json.decode`: no JSON or another shape, no UTF-8, nested too deeply (in this order)."""


def decoded(data: bytes | str, kind: type[T]) -> T | None:
    """Decode the JSON in `data` as a `kind`; None if that fails."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        return None
