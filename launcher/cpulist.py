"""Linux CPU lists (`0-47,96-143`) to sets and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

CPUS_MAX = 65536
"""More than any kernel has: a number with a zero too many must not fill the memory."""
_PART = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_cpulist(text: str) -> frozenset[int]:
    """The CPU numbers that `text` names; none for "". Raises ValueError on what taskset and the kernel do not read."""
    cpus: set[int] = set()
    text = text.rstrip("\n")  # as files of the kernel end
    for part in text.split(",") if text else ():
        found = _PART.fullmatch(part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if high < low or high >= CPUS_MAX:
            raise ValueError(f"not a CPU range: {part!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def format_cpulist(cpus: Iterable[int]) -> str:
    """`cpus` as the shortest Linux list."""
    # of neighbours the number less the position is the same
    runs = groupby(enumerate(sorted(set(cpus))), lambda at: at[1] - at[0])
    spans = ([cpu for _, cpu in run] for _, run in runs)
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)
