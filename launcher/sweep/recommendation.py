"""One recommendation for a server: by a rule, and only where a second measurement bears it out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.ir.sweep import Gain, PointResult, Recommendation, Verdict

RULE = "the most tokens a second together whose p95 latency is at most {limit:g} times that of one request at a time"
MIN_GAIN = 0.03
"""A gain below 3 % is called noise, however sure it is: the next build of the engine moves more than that."""

OPEN_GAIN = 0.10
"""An interval that reaches up to 10 % may hide a gain that matters: more pairs are measured."""
LOOKS = 3
"""Each with twice the pairs of the one before."""


def candidate(points: Sequence[PointResult], limit: float) -> tuple[PointResult, PointResult] | None:
    """What a server has now, and the best other settings that the rule allows; None where there are none.

    Each setting counts with its best number of requests in flight; where slots are swept, with as many as it has slots
    for: with fewer two slots are one that waits.
    """
    measured = [p for p in points if not p.refused and is_full(p, points)]
    allowed = [p for p in measured if p.multiplier is not None and p.multiplier <= limit]
    # what it has now is compared as it is used, whatever its own multiplier
    now = [p for p in (allowed or measured) if p.current] or [p for p in measured if p.current]
    others = [p for p in allowed if not p.current]
    if not now or not others:
        return None
    return max(now, key=_together), max(others, key=_together)


def is_full(point: PointResult, points: Sequence[PointResult]) -> bool:
    """Whether no more requests were in flight with the same settings, or slots are none of them."""
    same = (p.in_flight for p in points if p.settings == point.settings and not p.refused)
    return "slots" not in point.settings or point.in_flight == max(same)


def _together(point: PointResult) -> float:
    """What points are ordered by."""
    return point.together


def recommend(
    server: str, chosen: tuple[PointResult, PointResult] | None, gain: Gain | None, limit: float
) -> Recommendation:
    """The recommendation from what the grid chose and what pairs of batches measured of it."""
    rule = RULE.format(limit=limit)
    if chosen is None or gain is None:
        sentence = "keep what it has: no other setting could be measured that the rule allows"
        return Recommendation(server=server, verdict="noise", settings={}, candidate={}, rule=rule, sentence=sentence)
    _, best = chosen
    verdict = judge(gain)
    words = ", ".join(f"{field}={value}" for field, value in best.settings.items())
    measured = f"{gain.gain:+.1%} ({gain.low:+.1%} to {gain.high:+.1%}, {gain.pairs} pairs of batches)"
    if verdict == "better":
        sentence = f"set {words}: {measured}, p95 {best.multiplier:.2f} times that of one request at a time"
    elif verdict == "worse":
        sentence = f"keep what it has: {words} is slower, {measured}"
    else:
        sentence = f"keep what it has: the best other, {words}, is within noise, {measured}"
    return Recommendation(
        server=server,
        verdict=verdict,
        settings=dict(best.settings) if verdict == "better" else {},
        candidate=dict(best.settings),
        rule=rule,
        sentence=sentence,
        gain=gain,
    )


def judge(gain: Gain) -> Verdict:
    """Better or worse only where the whole interval lies beyond what counts."""
    if gain.low > MIN_GAIN:
        return "better"
    return "worse" if gain.high < -MIN_GAIN else "noise"


def is_decided(gain: Gain) -> bool:
    """Whether more pairs would change nothing that matters."""
    return judge(gain) != "noise" or gain.high < OPEN_GAIN


def verdict_of_all(recommendations: Iterable[Recommendation]) -> Verdict:
    """Better where any is; else noise where any is."""
    found = {r.verdict for r in recommendations}
    return "better" if "better" in found else "worse" if found == {"worse"} else "noise"
