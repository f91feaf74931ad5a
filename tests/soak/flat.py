"""Whether a figure of a long run still grows: the slope over its second half, not what the start was. Pure.

What a run takes at first (caches, an allocator's high-water mark, imports) comes in its first half and is no leak. What
a crowd holds while it is there is none either: of each stretch of the second half only the least counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_STRETCHES = 6
LEAST = 12
"""Figures that a verdict takes."""


def growth(figures: Sequence[float]) -> float:
    """How much was added over the second half, as a share of what was there; 0 for too few figures.

    A leak goes on: it is seen from end to end of the half, and within both of its halves. One step or one peak is not.
    """
    half = figures[len(figures) // 2 :]
    if len(figures) < LEAST:
        return 0.0
    bounds = [n * len(half) // _STRETCHES for n in range(_STRETCHES + 1)]
    a, _, c, d, _, f = (min(half[begin:end]) for begin, end in itertools.pairwise(bounds))
    return min((f - a) / 5, (c - a) / 2, (f - d) / 2) * _STRETCHES / a
