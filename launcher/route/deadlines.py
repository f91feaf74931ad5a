"""Deadlines of many exchanges behind one timer: an exchange costs a dict entry. I/O: a timer."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from launcher.route.lane import Lane


class Overdue(Protocol):
    """What has a deadline."""

    def overdue(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Calls `overdue` of every entry that was not removed by its deadline, and of every lane that is past its own."""

    __slots__ = ("_entries", "_timer", "armed_at", "lanes")

    def __init__(self) -> None:
        """Nothing is due."""
        self._entries: dict[Overdue, float] = {}
        self.lanes: set[Lane] = set()
        """These keep their deadline themselves (`due`), which costs an exchange nothing here."""
        self._timer: asyncio.TimerHandle | None = None
        self.armed_at = math.inf
        """When the timer looks; what is due earlier needs `arm`."""

    def add(self, entry: Overdue, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """`entry` is due at `at`, in seconds of the loop's clock. The timer stays unless this is earlier."""
        self._entries[entry] = at
        if at < self.armed_at:
            self.arm(loop, at)

    def remove(self, entry: Overdue) -> None:
        """`entry` ended in time; the timer finds nothing later, which is cheaper than moving it now."""
        self._entries.pop(entry, None)

    def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.lanes.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.armed_at = math.inf

    def __len__(self) -> int:
        """Exchanges whose end is awaited."""
        return len(self._entries) + sum(lane.due < math.inf for lane in self.lanes)

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
        late: list[Overdue] = [e for e, at in self._entries.items() if at <= now]
        late += [lane for lane in self.lanes if lane.due <= now]
        for entry in late:
            self.remove(entry)
            entry.overdue()
        at = min([*self._entries.values(), *[lane.due for lane in self.lanes]], default=math.inf)
        if at < self.armed_at:
            self.arm(loop, at)
