"""A sweep for people: one row per point, then what is recommended."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from launcher.cli.terminal import Terminal
from launcher.ir.sweep import PointResult, SweepDocument
from launcher.sizes import gib
from launcher.sweep import recommended, setting_words

_HEADER = (
    *("SERVER", "SETTINGS", "AT ONCE", "TOKENS/S", "EACH", "EXPECTED", "× EXPECTED", "PROMPT/S"),
    *("FIRST p50", "FIRST p95", "p50", "p95", "p99", "× ALONE", "ACCEPTED", "PLANNED", "MEASURED"),
)


def show_sweep(out: Terminal, document: SweepDocument) -> None:
    """Show everything that a sweep found."""
    measured = [p for p in document.points if not p.refused]
    numbers = range(2, len(_HEADER))
    out.table(_HEADER, [_row(p) for p in measured], right=numbers, optional=numbers)
    out.line()
    refused = (p for p in document.points if p.refused)
    for line in dict.fromkeys(f"{p.server} {setting_words(p.settings)}: not measured: {p.refused}" for p in refused):
        out.line(line)
    out.line("* as it is now; tokens/s of all requests together, then of each; seconds; p95 against one at a time")
    if any(p.expected for p in measured):
        out.line("expected: of each, by what was known of this host before the point was measured")
    for found in document.recommendation:
        style = {"better": "green", "worse": "dim", "noise": "yellow"}[found.verdict]
        out.line(f"{out.style(found.server, 'bold')}: {out.style(found.verdict, style)}: {found.sentence}")
        if found.settings:
            out.line(
                "  " + " ".join(f"servers.{found.server}.{field}={value}" for field, value in found.settings.items())
            )
    if len(document.recommendation) > 1:
        out.line()
        out.table(*recommended(document), right={2})
        out.line()
    out.line(f"rule: {document.recommendation[0].rule}")
    out.line(f"samples: {document.csv}; plot: {document.svg}")
    for path, written in document.applied.items():
        out.line(f"wrote {written} into {path}; `launch reload` takes it over")


def _row(p: PointResult) -> tuple[str, ...]:
    if p.latency is None or p.first_token is None:
        return (p.server, setting_words(p.settings), str(p.in_flight), *("" for _ in _HEADER[3:]))
    return (
        p.server,
        f"{setting_words(p.settings)}{' *' if p.current else ''}".strip(),
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


_FONTS = {
    "DejaVuSans.ttf": "DejaVu Sans",
    "LiberationSans-Regular.ttf": "Liberation Sans",
    "NotoSans-Regular.ttf": "Noto Sans",
}
"""Font file → its family; the first one that is there is used as `sans-serif`."""
_PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_ZOOM = 2


def png_requirement() -> str | None:
    """What must be installed before a PNG can be drawn, in words; None: nothing."""
    if importlib.util.find_spec("resvg_py") is None:
        return "--png needs the Python package resvg_py: pipx inject launch-fleet resvg_py"
    if _font() is None:
        return "--png needs a font, of which this machine has none: apt-get install fonts-dejavu-core"
    return None


def png(svg: str) -> bytes:
    """`svg` as PNG, in twice its size on white. Raises if something is `png_requirement`."""
    import resvg_py

    found = _font()
    assert found is not None  # noqa: S101 - see `png_requirement`
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=_ZOOM,
            background="white",
            skip_system_fonts=True,
            font_files=[str(found)],
            sans_serif_family=_FONTS[found.name],
        )
    )


def _font() -> Path | None:
    for place in _PLACES:
        there = {path.name: path for path in sorted(Path(place).expanduser().rglob("*.ttf"))}
        for name in _FONTS:
            if name in there:
                return there[name]
    return None
