"""Metrics as Prometheus reads them: labels, families, histograms. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def labelled(**labels: str) -> str:
    """Labels as text: `name="value",…`, the values escaped."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def family(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    """The lines of one metric. `samples`: labels, as `labelled` writes them or "", and the value."""
    yield from _head(name, kind, meaning)
    for labels, value in samples:
        yield f"{name}{_braced(labels)} {value:.10g}"


def histograms(name: str, meaning: str, parts: Mapping[str, Histogram]) -> Iterator[str]:
    """The lines of one metric that has histograms, by their labels."""
    yield from _head(name, "histogram", meaning)
    for labels, part in parts.items():
        yield from part.samples(name, labels)


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


class Histogram:
    """Seconds in buckets."""

    def __init__(self, more: Iterable[float] = ()) -> None:
        """Nothing observed. `more`: bounds besides the usual ones, such as a target's."""
        self.bounds = tuple(sorted({*BUCKETS_S, *more}))
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def samples(self, name: str, labels: str) -> Iterator[str]:
        """Its lines. `labels`: as `labelled` writes them, or ""."""
        seen, more = 0, f"{labels}," if labels else ""
        for bound, count in zip((*(f"{b:g}" for b in self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{more}le="{bound}"}} {seen}'
        yield f"{name}_sum{_braced(labels)} {self.total:.10g}"
        yield f"{name}_count{_braced(labels)} {seen}"
