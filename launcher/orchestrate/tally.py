"""What the orchestration has done, as Prometheus shows it. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


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

    def lines(self, name: str, meaning: str) -> Iterable[str]:
        """Its family as text."""
        return family(name, meaning, {"": self})

    def samples(self, name: str, labels: str) -> Iterable[str]:
        """Its samples as text. `labels`: `key="value"`, or ""."""
        seen, more = 0, f"{labels}," if labels else ""
        for bound, count in zip((*(f"{b:g}" for b in self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{more}le="{bound}"}} {seen}'
        shown = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{shown} {self.total:.10g}"
        yield f"{name}_count{shown} {seen}"


def family(name: str, meaning: str, parts: Mapping[str, Histogram]) -> Iterable[str]:
    """Histograms of one family as text, by their labels."""
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} histogram"
    for labels, part in parts.items():
        yield from part.samples(name, labels)


class Tally:
    """Counters of decisions, blocks, verdicts and generations."""

    def __init__(self) -> None:
        """All zero."""
        self.decisions: Counter[tuple[str, ...]] = Counter()
        self.verdicts: Counter[tuple[str, ...]] = Counter()
        self.generations: Counter[tuple[str, ...]] = Counter()
        self.blocks = 0
        self.corrections = 0
        self.routing = Histogram()
        self.judging = Histogram()

    def text(self) -> str:
        """Every family."""
        lines: list[str] = []

        def counter(name: str, meaning: str, labels: tuple[str, ...], values: Counter[tuple[str, ...]]) -> None:
            """One counter with labels."""
            lines.extend((f"# HELP {name} {meaning}", f"# TYPE {name} counter"))
            for key, value in sorted(values.items()):
                shown = ",".join(f'{label}="{_escaped(v)}"' for label, v in zip(labels, key, strict=True))
                lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")

        names = ("source", "domain", "model", "policy")
        counter("launch_auto_decisions_total", "Requests for auto, by who decided and what.", names, self.decisions)
        counter("launch_validation_verdicts_total", "Verdicts of the validator.", ("verdict",), self.verdicts)
        counter("launch_blocks_committed_total", "Blocks committed.", (), Counter({(): self.blocks}))
        counter("launch_corrections_total", "Blocks written again.", (), Counter({(): self.corrections}))
        counter("launch_generations_total", "Validated answers, by how they ended.", ("status",), self.generations)
        lines += self.routing.lines("launch_routing_seconds", "Seconds that the router took to decide.")
        lines += self.judging.lines("launch_verdict_seconds", "Seconds until a verdict.")
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    """`value` as a label value."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
