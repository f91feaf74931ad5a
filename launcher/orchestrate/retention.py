"""Until when the project memory may be dropped, by a clock that may be wrong. Pure.

The wall clock alone decides nothing: where it disagrees with the machine's own running time it jumped, and nothing is
dropped; and a day never costs more than a day's worth of what there is, however often it is asked, so that a wrong
clock costs days, not projects.
"""

from __future__ import annotations

import msgspec

DAY_S = 86400.0
JUMP_S = 3600.0
"""How far wall clock and running time may part between two looks."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Unix time, and seconds that the machine has run (with suspend) since the boot named."""

    wall: float
    boot: str
    running: float


def next_horizon(last: Moment | None, now: Moment, *, oldest: float, horizon: float, days: float) -> float | None:
    """Unix time before which all may be dropped now; None where the clock jumped since `last`.

    `oldest`: of what is kept. `horizon`: the one before. `days`: how long all is kept.
    """
    allowed = DAY_S
    if last is not None and last.boot == now.boot:
        ran = now.running - last.running
        if abs(now.wall - last.wall - ran) > JUMP_S:
            return None
        allowed = min(DAY_S, ran)
    return min(now.wall - days * DAY_S, max(horizon, oldest - DAY_S) + allowed)  # a gap without anything is skipped
