"""A sweep for people: one row a point, then what is recommended."""

from __future__ import annotations

from launcher.cli.terminal import Terminal
from launcher.ir.sweep import PointResult, SweepDocument
from launcher.sizes import gib
from launcher.sweep import recommended

_HEADER = (
    *("SERVER", "SETTINGS", "AT ONCE", "TOKENS/S", "EACH", "EXPECTED", "× EXPECTED", "PROMPT/S"),
    *("FIRST p50", "FIRST p95", "p50", "p95", "p99", "× ALONE", "ACCEPTED", "PLANNED", "MEASURED"),
)


def show_sweep(out: Terminal, document: SweepDocument) -> None:
    """Everything that a sweep found."""
    measured = [p for p in document.points if not p.refused]
    cells = [_row(p) for p in measured]
    kept = [i for i in range(len(_HEADER)) if i < 2 or any(row[i] for row in cells)]
    rows = [tuple(row[i] for i in kept) for row in cells]
    right = frozenset(at for at, i in enumerate(kept) if i > 1)
    out.table(tuple(_HEADER[i] for i in kept), rows, right=right)
    out.line()
    for refused in dict.fromkeys((p.server, _settings(p), p.refused) for p in document.points if p.refused):
        out.line(f"{refused[0]} {refused[1]}: not measured: {refused[2]}")
    out.line("* as it is now; tokens/s of all requests together, then of each; seconds; p95 against one at a time")
    if any(p.expected for p in measured):
        out.line("expected: of each, by what was known of this host before the point was measured")
    for found in document.recommendation:
        style = {"better": "green", "worse": "dim", "noise": "yellow"}[found.verdict]
        out.line(f"{out.style(found.server, 'bold')}: {out.style(found.verdict, style)}: {found.sentence}")
        if found.settings:
            words = " ".join(f"servers.{found.server}.{field}={value}" for field, value in found.settings.items())
            out.line(f"  {words}")
    if len(document.recommendation) > 1:
        out.line()
        header, found_rows = recommended(document)
        out.table(header, found_rows, right=frozenset({2}))
        out.line()
    out.line(f"rule: {document.recommendation[0].rule}")
    out.line(f"samples: {document.csv}; plot: {document.svg}")
    for path, written in document.applied.items():
        out.line(f"wrote {written} into {path}; `launch reload` takes it over")


def _settings(point: PointResult) -> str:
    """`slots=2 n_ubatch=256`."""
    return " ".join(f"{field}={value}" for field, value in point.settings.items())


def _row(p: PointResult) -> tuple[str, ...]:
    """One measured point as cells."""
    if p.latency is None or p.first_token is None:
        return (p.server, _settings(p), str(p.in_flight), *("" for _ in _HEADER[3:]))
    return (
        p.server,
        f"{_settings(p)}{' *' if p.current else ''}".strip(),
        str(p.in_flight),
        f"{p.together:.1f}",
        f"{p.generation:.1f}",
        "-".join(f"{end:.1f}" for end in dict.fromkeys(p.expected)) if p.expected else "",
        f"{p.ratio:.2f}" if p.ratio is not None else "",
        f"{p.prompt:.0f}",
        f"{p.first_token.p50:.2f}",
        f"{p.first_token.p95:.2f}",
        f"{p.latency.p50:.2f}",
        f"{p.latency.p95:.2f}",
        f"{p.latency.p99:.2f}",
        f"{p.multiplier:.2f}" if p.multiplier is not None else "",
        f"{p.accepted:.0%}" if p.accepted is not None else "",
        gib(p.planned_bytes),
        gib(p.memory_bytes),
    )
