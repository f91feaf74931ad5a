"""How much of the project memory may be deleted, by a clock that may be wrong. Pure.

The wall clock alone decides nothing: where it disagrees with the machine's own running time it has jumped, and nothing
is deleted. A day never costs more than a day's worth of entries, however often this is asked, so that a wrong clock
costs days, not projects.
"""

from __future__ import annotations

import msgspec

DAY_S = 86400.0
JUMP_S = 3600.0
"""Seconds that wall clock and running time may differ between two calls."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Unix time, and seconds that the machine has run (suspend included) since the boot `boot`."""

    wall: float
    boot: str
    running: float


def next_horizon(last: Moment | None, now: Moment, *, oldest: float, horizon: float, days: float) -> float | None:
    """Unix time before which everything may be deleted now; None where the clock has jumped since `last`.

    `oldest`: Unix time of the oldest entry. `horizon`: the previous result. `days`: how long entries are kept.
    """
    allowed = DAY_S
    if last is not None and last.boot == now.boot:
        ran = now.running - last.running
        if abs(now.wall - last.wall - ran) > JUMP_S:
            return None
        allowed = min(DAY_S, ran)
    return min(now.wall - days * DAY_S, max(horizon, oldest - DAY_S) + allowed)  # a gap without anything is skipped
