"""Throughput against latency as SVG: a line per setting, a point per number of requests in flight. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

from launcher.ir.sweep import PointResult
from launcher.sweep.points import setting_words

WIDTH, HEIGHT = 760, 460
"""Pixels at least; a long legend or title makes the drawing larger."""
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 50, 60
# the Okabe-Ito palette: told apart by people who see no red or green
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
TICKS = 6
ROW, LETTER, TITLE_LETTER = 18, 7.2, 9
"""Pixels of a line of the legend, of a letter in it at most, and of a letter of the title at most."""


class _Dot(NamedTuple):
    in_flight: int
    p95: float
    together: float


def plot(points: Iterable[PointResult], title: str) -> str:
    """The SVG text; refused points are left out."""
    lines: dict[str, list[_Dot]] = defaultdict(list)
    for point in points:
        if not point.refused and point.latency is not None:
            lines[_label(point)].append(_Dot(point.in_flight, point.latency.p95, point.together))
    dots = [dot for line in lines.values() for dot in line]
    across, upward = _ticks([dot.p95 for dot in dots]), _ticks([dot.together for dot in dots])
    body = [*_axes(across, upward), *_lines(lines, across[-1], upward[-1])]
    legend = WIDTH - RIGHT + 26 + LETTER * max(map(len, lines), default=0)
    width = ceil(max(WIDTH, legend + 10, LEFT + TITLE_LETTER * len(title)))
    height = max(HEIGHT, TOP + ROW * (len(lines) + 1))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="28" font-size="15">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def _label(point: PointResult) -> str:
    return f"{point.server}: {setting_words(point.settings, ', ') or 'as it is'}"


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from 0 to above the largest value."""
    top = max(values, default=1.0) or 1.0
    rough = top / TICKS
    power = 10 ** floor(log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [step * i for i in range(ceil(top * 1.02 / step) + 1)]


def _x(value: float, top: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / top


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _axes(across: Sequence[float], upward: Sequence[float]) -> list[str]:
    right, floor_y = WIDTH - RIGHT, HEIGHT - BOTTOM
    drawn = []
    for value in upward:
        y = _y(value, upward[-1])
        drawn.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across:
        x = _x(value, across[-1])
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{floor_y}" y2="{floor_y + 5}" stroke="#666"/>')
        drawn.append(f'<text x="{x:.1f}" y="{floor_y + 20}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + right) / 2
    below = f'x="{middle}" y="{HEIGHT - 14}" text-anchor="middle"'
    drawn.append(f"<text {below}>latency of a request, p95, seconds</text>")
    beside = f'transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle"'
    drawn.append(f"<text {beside}>tokens a second, together</text>")
    return drawn


def _lines(lines: dict[str, list[_Dot]], across: float, upward: float) -> list[str]:
    drawn = []
    for at, (label, dots) in enumerate(lines.items()):
        colour = COLOURS[at % len(COLOURS)]
        ordered = sorted(dots, key=lambda dot: dot.in_flight)
        places = [(_x(dot.p95, across), _y(dot.together, upward)) for dot in ordered]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for dot, (x, y) in zip(ordered, places, strict=True):
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            drawn.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="{colour}">{dot.in_flight}</text>')
        row = TOP + ROW * at
        drawn.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{row}" r="4" fill="{colour}"/>')
        drawn.append(f'<text x="{WIDTH - RIGHT + 26}" y="{row + 4}">{escape(label)}</text>')
    return drawn
