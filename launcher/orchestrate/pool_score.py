"""How good the warm pool was: hits, misses, wasted bytes, as Prometheus shows it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Seen(Protocol):
    """What is known of a model's files, in bytes."""

    @property
    def key(self) -> str:
        """Its model file."""

    @property
    def resident(self) -> int | None:
        """In RAM; None where the kernel does not tell."""

    @property
    def total(self) -> int:
        """All of it."""

    @property
    def locked(self) -> int:
        """Locked in RAM."""


class Score:
    """Counts since the runtime began."""

    def __init__(self) -> None:
        """All zero."""
        self.hits = self.misses = 0
        self.foreseen = self.unforeseen = 0
        self.evictions = 0
        self.read_bytes = self.wasted_bytes = 0

    def needed(self, *, warm: bool, expected: bool) -> None:
        """A worker was needed: `warm`, its file was in RAM; `expected`, it was the first forecast."""
        self.hits += warm
        self.misses += not warm
        self.foreseen += expected
        self.unforeseen += not expected

    def read(self, size: int) -> None:
        """So many bytes were read into RAM."""
        self.read_bytes += max(0, size)

    def evicted(self, wasted: int) -> None:
        """A model's files went; `wasted` bytes of them had been read and nobody had needed them."""
        self.evictions += 1
        self.wasted_bytes += max(0, wasted)

    def text(self, files: Iterable[Seen], budget_bytes: int) -> str:
        """Every family."""
        known = list(files)
        lines: list[str] = []

        def family(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> None:
            """One metric with its samples."""
            lines.extend((f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{labels} {value:.10g}" for labels, value in samples)

        def each(field: str) -> list[tuple[str, float]]:
            """One sample a model."""
            found = ((_label(seen.key), getattr(seen, field)) for seen in known)
            return [(f'{{file="{key}"}}', value) for key, value in found if value is not None]

        prefix = "launch_warm_pool"
        family(f"{prefix}_hits_total", "counter", "Workers that were needed with their file in RAM.", [("", self.hits)])
        family(f"{prefix}_misses_total", "counter", "Workers that were needed without.", [("", self.misses)])
        family(
            "launch_predictions_total",
            "counter",
            "Workers that were needed, by whether they were the first forecast.",
            [('{outcome="hit"}', self.foreseen), ('{outcome="miss"}', self.unforeseen)],
        )
        family(f"{prefix}_evictions_total", "counter", "Models whose files were let go.", [("", self.evictions)])
        family(f"{prefix}_read_bytes_total", "counter", "Bytes read into RAM ahead.", [("", self.read_bytes)])
        family(
            f"{prefix}_wasted_bytes_total", "counter", "Bytes read ahead and let go unused.", [("", self.wasted_bytes)]
        )
        family(f"{prefix}_budget_bytes", "gauge", "What the pool may hold now.", [("", budget_bytes)])
        family(f"{prefix}_resident_bytes", "gauge", "Bytes of a worker's files in RAM.", each("resident"))
        family(f"{prefix}_locked_bytes", "gauge", "Bytes of a worker's files locked in RAM.", each("locked"))
        family(f"{prefix}_file_bytes", "gauge", "Bytes of a worker's files.", each("total"))
        return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    """`value` as a label value."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
