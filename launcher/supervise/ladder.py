"""Where a server stands on its ladder: down a rung when it runs out of memory, up again when there is room. Pure.

Rung 0 is what was planned; rung n is the n-th of the manifest. A server goes down one rung an out-of-memory and never
below the last: after as many as there are rungs it has failed. It goes up one rung at a time, not before a pause that
doubles with every climb that did not hold, so that a server which cannot stay up there is not restarted for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

CLIMB_FIRST_S = 60.0
CLIMB_MAX_S = 3600.0
OUT_OF_MEMORY = frozenset(
    {
        "supervise/kv-out-of-memory",
        "supervise/oom-killed",
        "supervise/out-of-memory",
        "supervise/vram-out-of-memory",
    }
)
"""Diagnoses after which the same start would most likely end the same way, and a smaller one would not."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`rung` in use; `slips`: how often it went down, ever; `slipped_at` and `climb_at` on the clock of `now`.

    `climb_at`: when it may be tried one rung higher (None on rung 0). `pause_s`: how long after the next slip.
    """

    rung: int = 0
    slips: int = 0
    slipped_at: float | None = None
    climbed_at: float | None = None
    climb_at: float | None = None
    pause_s: float = CLIMB_FIRST_S


def slip(standing: Standing, rungs: int, now: float) -> Standing | None:
    """One rung down of `rungs`; None when there is none.

    A slip soon after a climb doubles the pause; one after the climb had held for a whole pause begins anew.
    """
    if standing.rung >= rungs:
        return None
    climbed = standing.climbed_at
    pause = standing.pause_s
    if climbed is not None:
        pause = CLIMB_FIRST_S if now - climbed > pause else min(CLIMB_MAX_S, pause * 2)
    return Standing(
        rung=standing.rung + 1, slips=standing.slips + 1, slipped_at=now, climb_at=now + pause, pause_s=pause
    )


def climb(standing: Standing, now: float) -> Standing:
    """One rung up; the next one may be tried after another pause."""
    rung = max(0, standing.rung - 1)
    return msgspec.structs.replace(
        standing, rung=rung, climbed_at=now, climb_at=now + standing.pause_s if rung else None
    )


def may_climb(
    standing: Standing, now: float, here: Mapping[str, int], above: Mapping[str, int], available: Mapping[str, int]
) -> bool:
    """Whether the rung above may be tried: its pause is over, and what it takes more is available.

    Bytes by device; `here` is what the server holds now (nothing when it does not run). A device whose available
    memory is not known does not stand in the way: the pause alone decides.
    """
    if standing.rung == 0 or standing.climb_at is None or now < standing.climb_at:
        return False
    more = {device: size - here.get(device, 0) for device, size in above.items()}
    return all(size <= available[device] for device, size in more.items() if size > 0 and device in available)
