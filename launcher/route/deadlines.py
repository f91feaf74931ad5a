"""When a client must have sent something, and its answer must be complete: one timer a connection. I/O: a timer."""

from __future__ import annotations

import asyncio
import dataclasses
import math


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Deadlines:
    """Two deadlines in loop time, infinity for none. Moving one to a later time, or to none, costs nothing."""

    client_due: float = dataclasses.field(init=False, default=math.inf)
    answer_due: float = dataclasses.field(init=False, default=math.inf)
    _armed_at: float = dataclasses.field(init=False, default=math.inf)
    """When the timer fires."""
    _timer: asyncio.TimerHandle | None = dataclasses.field(init=False, default=None)
    _loop: asyncio.AbstractEventLoop = dataclasses.field(init=False, default_factory=asyncio.get_running_loop)

    def on_client_deadline(self) -> None:
        """The client's deadline has passed; it has none until it is given another."""
        raise NotImplementedError

    def on_answer_deadline(self) -> None:
        """The answer's deadline has passed."""
        raise NotImplementedError

    def set_client_deadline(self, seconds: float) -> None:
        """The client must send something within `seconds`."""
        at = self.client_due = self._loop.time() + seconds
        if at < self._armed_at:
            self._arm(at)

    def set_answer_deadline(self, at: float) -> None:
        """The answer must be complete at `at` (loop time)."""
        self.answer_due = at
        if at < self._armed_at:
            self._arm(at)

    def cancel_deadlines(self) -> None:
        """The connection has ended: cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it refers to this in a circle (see `RequestReader.close`)
        self._armed_at = -math.inf

    def _arm(self, at: float) -> None:
        """Start the timer for `at`. It is not moved when a deadline moves later: it looks again when it fires."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """The timer fired: report what has passed, and start it again for the rest."""
        self._timer = None
        self._armed_at = math.inf
        now = self._loop.time()
        if self.answer_due <= now:
            self.answer_due = math.inf
            self.on_answer_deadline()
        if self.client_due <= now:
            self.client_due = math.inf
            self.on_client_deadline()
        at = min(self.client_due, self.answer_due)
        if at < self._armed_at:
            self._arm(at)
