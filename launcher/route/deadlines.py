"""Deadlines of many exchanges behind one timer: an exchange costs a dict entry. I/O: a timer."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol


class Overdue(Protocol):
    """What has a deadline."""

    def overdue(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Calls `overdue` of every entry that was not removed by its deadline. The lane writes `entries` itself."""

    __slots__ = ("_timer", "armed_at", "entries")

    def __init__(self) -> None:
        """Nothing is due."""
        self.entries: dict[Overdue, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.armed_at = math.inf
        """When the timer looks; an entry that is due earlier needs `arm`."""

    def add(self, entry: Overdue, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """`entry` is due at `at`, in seconds of the loop's clock. The timer stays unless this is earlier."""
        self.entries[entry] = at
        if at < self.armed_at:
            self.arm(loop, at)

    def remove(self, entry: Overdue) -> None:
        """`entry` ended in time; the timer finds nothing later, which is cheaper than moving it now."""
        self.entries.pop(entry, None)

    def hand_over(self, entry: Overdue, other: Overdue) -> None:
        """`other` has the deadline of `entry` from now on, unless that has passed."""
        at = self.entries.pop(entry, None)
        if at is not None:
            self.entries[other] = at

    def close(self) -> None:
        """Forget everything."""
        self.entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.armed_at = math.inf

    def __len__(self) -> int:
        """Entries whose end is awaited."""
        return len(self.entries)

    def arm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Look again at `at`."""
        if self._timer is not None:
            self._timer.cancel()
        self.armed_at = at
        self._timer = loop.call_at(at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is overdue, sleep until the next may be."""
        self._timer = None
        self.armed_at = math.inf
        now = loop.time()
        for entry in [e for e, at in self.entries.items() if at <= now]:
            self.remove(entry)
            entry.overdue()
        if self.entries:
            at = min(self.entries.values())
            if at < self.armed_at:
                self.arm(loop, at)
