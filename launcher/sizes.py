"""Byte sizes: parsing what people write, printing what people read. Pure."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "k": KIB,
    "m": MIB,
    "g": GIB,
    "t": 1024**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes meant by `text`: an int of bytes, or a number with a unit.

    `GB` is 1000**3, `GiB` and a bare `G` are 1024**3. Raises ValueError when the text is not a size.
    """
    if isinstance(text, bool):
        raise ValueError(f"not a size: {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"a size cannot be negative: {text}")
        return text
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"not a size: {text!r}; write bytes, or a number with MB, GB, MiB or GiB")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[match[2].lower()]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def gib(size_bytes: int) -> str:
    """`size_bytes` in GiB with one decimal, for people: `17.3 GiB`; below 1 GiB in MiB, below 1 MiB in KiB."""
    if 0 < abs(size_bytes) < MIB:
        return f"{size_bytes / 1024:.0f} KiB"
    if abs(size_bytes) < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"
