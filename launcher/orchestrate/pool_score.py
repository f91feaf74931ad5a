"""Counters of the warm pool for Prometheus: hits, misses, wasted bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from launcher.base import metrics
from launcher.base.metrics import counter, gauge

WARM = 0.95
"""Share of a file that must be in RAM to call it warm: a few pages may never be needed."""


class FilesInRam(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says of a model's files, in bytes; `resident` None: the kernel does not tell."""

    key: str
    resident: int | None
    total: int
    locked: int
    loading: bool
    read: int

    @property
    def percent(self) -> float | None:
        """Share in RAM."""
        return None if self.resident is None or not self.total else 100 * self.resident / self.total

    @property
    def warm(self) -> bool:
        """Whether a start would read memory."""
        return self.resident is not None and self.total > 0 and self.resident >= WARM * self.total


class Score:
    """Counters since the runtime began."""

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.foreseen = self.unforeseen = 0
        self.evictions = 0
        self.read_bytes = self.wasted_bytes = 0

    def needed(self, *, warm: bool, expected: bool) -> None:
        """A worker was needed. `warm`: its file was in RAM; `expected`: it was the first forecast."""
        self.hits += warm
        self.misses += not warm
        self.foreseen += expected
        self.unforeseen += not expected

    def read(self, size: int) -> None:
        """Count `size` bytes read into RAM."""
        self.read_bytes += max(0, size)

    def evicted(self, wasted: int) -> None:
        """A model's files were dropped; `wasted`: bytes of them that were read and never used."""
        self.evictions += 1
        self.wasted_bytes += max(0, wasted)

    def text(self, files: Iterable[FilesInRam], budget_bytes: int) -> str:
        """All metrics as Prometheus text."""
        known = list(files)

        def count(what: str, meaning: str, value: int) -> Iterator[str]:
            return counter(f"launch_warm_pool_{what}_total", meaning, [({}, value)])

        def each(field: str, what: str, meaning: str) -> Iterator[str]:
            samples = (({"file": seen.key}, getattr(seen, field)) for seen in known)
            there = [(labels, value) for labels, value in samples if value is not None]
            return gauge(f"launch_warm_pool_{what}_bytes", meaning, there)

        outcomes = [({"outcome": "hit"}, self.foreseen), ({"outcome": "miss"}, self.unforeseen)]
        predicted = "Workers that were needed, by whether they were the first forecast."
        return metrics.text(
            count("hits", "Workers that were needed with their file in RAM.", self.hits),
            count("misses", "Workers that were needed without.", self.misses),
            counter("launch_predictions_total", predicted, outcomes),
            count("evictions", "Models whose files were let go.", self.evictions),
            count("read_bytes", "Bytes read into RAM ahead.", self.read_bytes),
            count("wasted_bytes", "Bytes read ahead and let go unused.", self.wasted_bytes),
            gauge("launch_warm_pool_budget_bytes", "What the pool may hold now.", [({}, budget_bytes)]),
            each("resident", "resident", "Bytes of a worker's files in RAM."),
            each("locked", "locked", "Bytes of a worker's files locked in RAM."),
            each("total", "file", "Bytes of a worker's files."),
        )
