"""The circuit breaker of one upstream: a pure state machine.

CLOSED → OPEN after `failures` failures in a row; OPEN → one probe once `open_s` is over; the probe's success closes
it, its failure opens it again for twice as long, at most `open_max_s`.
"""

from __future__ import annotations

import msgspec

from launcher.ir.fleet import BreakerUnit


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """State of a breaker. `open_s` 0 = closed; times are seconds of one monotonic clock."""

    failures: int = 0
    open_s: float = 0.0
    open_until: float = 0.0
    probing: bool = False


CLOSED = Breaker()


def admits(state: Breaker, now: float) -> bool:
    """Whether a request may go through at `now`."""
    return state.open_s == 0 or (now >= state.open_until and not state.probing)


def on_start(state: Breaker) -> Breaker:
    """An admitted request is sent: with an open breaker it is the probe."""
    return state if state.open_s == 0 else msgspec.structs.replace(state, probing=True)


def on_failure(state: Breaker, now: float, unit: BreakerUnit) -> Breaker:
    """The upstream failed a request at `now`. Failures of requests sent before it opened do not extend it."""
    if state.open_s == 0:
        failures = state.failures + 1
        if failures < unit.failures:
            return Breaker(failures=failures)
        return Breaker(failures=failures, open_s=unit.open_s, open_until=now + unit.open_s)
    if not state.probing:
        return state
    open_s = min(state.open_s * 2, unit.open_max_s)
    return Breaker(failures=state.failures + 1, open_s=open_s, open_until=now + open_s)


def on_abandon(state: Breaker) -> Breaker:
    """The client disconnected before the answer: nothing was learned, another probe may be sent."""
    return state if not state.probing else msgspec.structs.replace(state, probing=False)
