"""Recommend settings for a server by a rule, if a second measurement confirms them; and a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from launcher.ir.sweep import Gain, PointResult, Recommendation, SweepDocument, Verdict
from launcher.sweep.points import setting_words

Row = tuple[str, ...]
RULE = "the most tokens a second together whose p95 latency is at most {limit:g} times that of one request at a time"
MIN_GAIN = 0.03
"""A gain below 3 % counts as noise, however certain it is: the next build of the engine changes more than that."""

OPEN_GAIN = 0.10
"""An interval that reaches 10 % may hide a gain that matters: more pairs are measured."""
_together = attrgetter("together")
ROUNDS = 3
"""Rounds of measuring pairs at most, each with twice the pairs of the one before."""


def candidate(points: Sequence[PointResult], limit: float) -> tuple[PointResult, PointResult] | None:
    """The server's present point, and the best other one that the rule allows; None if there is none.

    Each setting counts with its best number of requests in flight; if slots are swept, with the most requests: with
    fewer than it has slots, a slot is idle.
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
    """Whether no other point of the same settings has more requests in flight; True if slots are not swept."""
    same = (p.in_flight for p in points if p.settings == point.settings and not p.refused)
    return "slots" not in point.settings or point.in_flight == max(same)


def recommend(
    server: str, chosen: tuple[PointResult, PointResult] | None, gain: Gain | None, limit: float
) -> Recommendation:
    """The recommendation, from the points that the grid chose and the gain that pairs of batches measured."""
    rule = RULE.format(limit=limit)
    if chosen is None or gain is None:
        sentence = "keep what it has: no other setting could be measured that the rule allows"
        return Recommendation(server=server, verdict="noise", settings={}, candidate={}, rule=rule, sentence=sentence)
    _, best = chosen
    verdict = judge(gain)
    words = setting_words(best.settings, ", ")
    measured = f"{gain.gain:+.1%} ({gain.low:+.1%} to {gain.high:+.1%}, {gain.pairs} pairs of batches)"
    sentences = {
        "better": f"set {words}: {measured}, p95 {best.multiplier:.2f} times that of one request at a time",
        "worse": f"keep what it has: {words} is slower, {measured}",
        "noise": f"keep what it has: the best other, {words}, is within noise, {measured}",
    }
    settings = dict(best.settings)
    return Recommendation(
        server=server,
        verdict=verdict,
        settings=settings if verdict == "better" else {},
        candidate=settings,
        rule=rule,
        sentence=sentences[verdict],
        gain=gain,
    )


def judge(gain: Gain) -> Verdict:
    """`better` or `worse` only if the whole interval is beyond MIN_GAIN."""
    if gain.low > MIN_GAIN:
        return "better"
    return "worse" if gain.high < -MIN_GAIN else "noise"


def is_decided(gain: Gain) -> bool:
    """Whether more pairs would not change the verdict, or only by a gain that does not matter."""
    return judge(gain) != "noise" or gain.high < OPEN_GAIN


def verdict_of_all(recommendations: Iterable[Recommendation]) -> Verdict:
    """`better` if any is; `worse` if all are; else `noise`."""
    found = {r.verdict for r in recommendations}
    return "better" if "better" in found else "worse" if found == {"worse"} else "noise"


def recommended(document: SweepDocument) -> tuple[Row, list[Row]]:
    """Header and rows of a sweep of several servers, as the server-stack document has it.

    Columns: server, model, port, value to set (present value), reason.
    """
    fields = list(dict.fromkeys(field for point in document.points for field in point.settings))
    one = fields[0] if len(fields) == 1 else ""
    header = ("SERVER", "MODEL", "PORT", f"RECOMMENDED {one}".strip(), "WHY")
    rows: list[Row] = []
    for found in document.recommendation:
        points = [p for p in document.points if p.server == found.server]
        port = str(found.port) if found.port else ""
        rows.append((found.server, found.model, port, _choice(found, points, one), _why(found, points)))
    return header, rows


def _choice(found: Recommendation, points: Sequence[PointResult], one: str) -> str:
    """`2 (was 1)`, `1 (keep)`; a dash if nothing could be measured."""
    if all(p.refused for p in points):
        return "-"
    now = _words(next(p.settings for p in points if p.current), one)
    return f"{_words(found.settings, one)} (was {now})" if found.settings else f"{now or 'as it is'} (keep)"


def _why(found: Recommendation, points: Sequence[PointResult]) -> str:
    """The gain, and its cost in p95 latency; for a server that keeps its settings, why no other is taken."""
    measured = [p for p in points if not p.refused]
    if not measured:
        return points[0].refused
    others = [p for p in measured if not p.current and p.multiplier is not None and is_full(p, points)]
    tried = [p for p in others if p.settings == found.candidate]
    if found.gain is not None and tried:
        best = max(tried, key=_together)
        span = f"{found.gain.gain:+.0%} tokens/s together ({found.gain.low:+.0%} to {found.gain.high:+.0%})"
        noise = "" if found.settings else f"{setting_words(found.candidate)} is no gain: "
        return f"{noise}{span}, p95 multiplier {best.multiplier:.2f}"
    if not others:
        return "nothing else could be measured"
    best = max(others, key=_together)
    return f"{setting_words(best.settings)} rejected: p95 multiplier {best.multiplier:.2f}"


def _words(settings: dict[str, str], one: str) -> str:
    """Settings as `slots=2`; the value alone if the column names the field."""
    return settings.get(one, "") if one else setting_words(settings)
