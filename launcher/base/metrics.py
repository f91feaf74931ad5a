"""Metrics in Prometheus' text format. Pure.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, 0.0.4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

Samples = Iterable[tuple[Mapping[str, str], float]]
"""Pairs of labels (name → value) and number."""
BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """A histogram of durations in seconds."""

    def __init__(self, more: Iterable[float] = ()) -> None:
        """`more`: bucket bounds in seconds beside BUCKETS_S, such as a target's."""
        self.bounds = tuple(sorted({*BUCKETS_S, *more}))
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


def text(*families: Iterable[str]) -> str:
    """The lines of all `families` as one text."""
    return "".join(f"{line}\n" for lines in families for line in lines)


def counter(name: str, meaning: str, samples: Samples) -> Iterator[str]:
    """The lines of a counter: a value that only grows."""
    return _family("counter", name, meaning, samples)


def gauge(name: str, meaning: str, samples: Samples) -> Iterator[str]:
    """The lines of a gauge: a value that rises and falls."""
    return _family("gauge", name, meaning, samples)


def histogram(name: str, meaning: str, parts: Iterable[tuple[Mapping[str, str], Histogram]]) -> Iterator[str]:
    """The lines of a histogram: how often something took how long."""
    yield from _head("histogram", name, meaning)
    for labels, part in parts:
        seen = 0
        for bound, count in zip((*(f"{b:g}" for b in part.bounds), "+Inf"), part.counts, strict=True):
            seen += count
            yield _sample(f"{name}_bucket", {**labels, "le": bound}, seen)
        yield _sample(f"{name}_sum", labels, part.total)
        yield _sample(f"{name}_count", labels, seen)


def _family(kind: str, name: str, meaning: str, samples: Samples) -> Iterator[str]:
    yield from _head(kind, name, meaning)
    for labels, value in samples:
        yield _sample(name, labels, value)


def _head(kind: str, name: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value:.10g}" if shown else f"{name} {value:.10g}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
