"""Deadlines of many exchanges behind one timer: an exchange costs a dict entry. I/O: a timer."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Overdue(Protocol):
    """What has a deadline."""

    def overdue(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Calls `overdue` of every entry that was not removed by its deadline."""

    __slots__ = ("_armed_at", "_entries", "_timer")

    def __init__(self) -> None:
        """Nothing is due."""
        self._entries: dict[Overdue, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0

    def add(self, entry: Overdue, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """`entry` is due at `at`, in seconds of the loop's clock. The timer stays unless this is earlier."""
        self._entries[entry] = at
        if self._timer is None or at < self._armed_at:
            self._arm(loop, at)

    def remove(self, entry: Overdue) -> None:
        """`entry` ended in time; the timer finds nothing later, which is cheaper than moving it now."""
        self._entries.pop(entry, None)

    def hand_over(self, entry: Overdue, other: Overdue) -> None:
        """`other` has the deadline of `entry` from now on, unless that has passed."""
        at = self._entries.pop(entry, None)
        if at is not None:
            self._entries[other] = at

    def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        """Entries whose end is awaited."""
        return len(self._entries)

    def _arm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Look again at `at`."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = at
        self._timer = loop.call_at(at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is overdue, sleep until the next may be."""
        self._timer = None
        now = loop.time()
        for entry in [e for e, at in self._entries.items() if at <= now]:
            self.remove(entry)
            entry.overdue()
        if self._entries:
            at = min(self._entries.values())
            if self._timer is None or at < self._armed_at:
                self._arm(loop, at)
