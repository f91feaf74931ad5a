"""Linux CPU lists (`0-47,96-143`) to sets and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def parse_cpulist(text: str) -> frozenset[int]:
    """The CPU numbers that `text` names. Raises ValueError on anything else than numbers and ranges."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        low, high = int(first), int(last) if dash else int(first)
        if low < 0 or high < low or high > 65535:
            raise ValueError(f"not a CPU range: {part!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def format_cpulist(cpus: Iterable[int]) -> str:
    """`cpus` as the shortest Linux list."""
    # of neighbours the number less the position is the same
    runs = groupby(enumerate(sorted(set(cpus))), lambda at: at[1] - at[0])
    spans = ([cpu for _, cpu in run] for _, run in runs)
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)
