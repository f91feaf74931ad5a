"""Timeouts of an upstream's answer: its silence counts, its total time only where one is set. Pure."""

from __future__ import annotations

import math

LOOK_SHARE = 0.25
"""Fraction of the allowed silence after which the last sign is checked: nothing is done per byte."""


def next_look(now: float, heard_at: float, silence_s: float, sent_at: float, total_s: float | None) -> float | str:
    """When to check again a server last heard at `heard_at` and asked at `sent_at`; or the reason of its timeout."""
    silent_by, total_by = heard_at + silence_s, sent_at + (total_s or math.inf)
    if now >= silent_by:
        return f"the server said nothing for {silence_s:g} s"
    if now >= total_by:
        return "the server did not finish its answer in time"
    return min(now + silence_s * LOOK_SHARE, silent_by, total_by)
