"""When a client must have sent something, and its answer must be complete: one timer a connection. I/O: a timer."""

from __future__ import annotations

import asyncio
import dataclasses
import math


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Deadlines:
    """Two times of the loop, infinity for none. Either may be set to a later time, or to none, at no cost."""

    client_due: float = dataclasses.field(init=False, default=math.inf)
    answer_due: float = dataclasses.field(init=False, default=math.inf)
    _armed_at: float = dataclasses.field(init=False, default=math.inf)
    """When the timer looks."""
    _timer: asyncio.TimerHandle | None = dataclasses.field(init=False, default=None)
    _loop: asyncio.AbstractEventLoop = dataclasses.field(init=False, default_factory=asyncio.get_running_loop)

    def late(self) -> None:
        """The client's has passed; there is none until it is given another."""
        raise NotImplementedError

    def overdue(self) -> None:
        """The answer's has passed."""
        raise NotImplementedError

    def client_by(self, seconds: float) -> None:
        """The client must send something within `seconds`."""
        at = self.client_due = self._loop.time() + seconds
        if at < self._armed_at:
            self._arm(at)

    def answer_by(self, at: float) -> None:
        """The answer must be complete at `at`, a time of the loop."""
        self.answer_due = at
        if at < self._armed_at:
            self._arm(at)

    def without_deadlines(self) -> None:
        """The connection is gone: nobody looks any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it refers to this in a circle (see `RequestReader.close`)
        self._armed_at = -math.inf

    def _arm(self, at: float) -> None:
        """Look at `at`. The timer stays where a deadline moves on: it looks again."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """A deadline may have passed."""
        self._timer = None
        self._armed_at = math.inf
        now = self._loop.time()
        if self.answer_due <= now:
            self.answer_due = math.inf
            self.overdue()
        if self.client_due <= now:
            self.client_due = math.inf
            self.late()
        at = min(self.client_due, self.answer_due)
        if at < self._armed_at:
            self._arm(at)
