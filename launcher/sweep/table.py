"""A sweep of several servers as the server-stack document tells it: one row a server, what to set, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.ir.sweep import PointResult, Recommendation, SweepDocument
from launcher.sweep.recommendation import is_full

Row = tuple[str, ...]


def recommended(document: SweepDocument) -> tuple[Row, list[Row]]:
    """Header and rows: server, model, port, what to set (was what), why."""
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
    """`2 (was 1)`, `1 (keep)`; a dash where nothing could be measured."""
    if all(p.refused for p in points):
        return "-"
    now = _words(next(p.settings for p in points if p.current), one)
    return f"{_words(found.settings, one)} (was {now})" if found.settings else f"{now or 'as it is'} (keep)"


def _why(found: Recommendation, points: Sequence[PointResult]) -> str:
    """The gain and what requests wait for it; of a server that keeps what it has, why no other is taken."""
    measured = [p for p in points if not p.refused]
    if not measured:
        return points[0].refused
    others = [p for p in measured if not p.current and p.multiplier is not None and is_full(p, points)]
    tried = [p for p in others if p.settings == found.candidate]
    if found.gain is not None and tried:
        best = max(tried, key=_together)
        span = f"{found.gain.gain:+.0%} tokens/s together ({found.gain.low:+.0%} to {found.gain.high:+.0%})"
        noise = "" if found.settings else f"{_words(found.candidate)} is no gain: "
        return f"{noise}{span}, p95 multiplier {best.multiplier:.2f}"
    if not others:
        return "nothing else could be measured"
    best = max(others, key=_together)
    return f"{_words(best.settings)} rejected: p95 multiplier {best.multiplier:.2f}"


def _words(settings: dict[str, str], one: str = "") -> str:
    """`slots=2`; the value alone where the column names the field."""
    return settings.get(one, "") if one else " ".join(f"{field}={value}" for field, value in settings.items())


def _together(point: PointResult) -> float:
    """What points are ordered by."""
    return point.together
