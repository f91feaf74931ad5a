"""How long a server may take: silence is what counts, a total only where one is set. Pure."""

from __future__ import annotations

import math

LOOK = 0.25
"""After this part of the time that a server may be silent it is seen whether it was: nothing is noted by the byte."""


def judged(now: float, heard_at: float, silence_s: float, sent_at: float, total_s: float | None) -> float | str:
    """When to look again at a server that was heard at `heard_at` and asked at `sent_at`; or why it is given up."""
    silent_by, total_by = heard_at + silence_s, sent_at + (total_s or math.inf)
    if now >= silent_by:
        return f"the server said nothing for {silence_s:g} s"
    if now >= total_by:
        return "the server did not finish its answer in time"
    return min(now + silence_s * LOOK, silent_by, total_by)
