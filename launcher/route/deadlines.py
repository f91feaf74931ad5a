"""When a client must have sent something, and its answer must be complete: one timer a connection. I/O: a timer."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Protocol


class Owner(Protocol):
    """Whose deadlines they are."""

    def late(self) -> None:
        """The client's has passed; there is none until it is given another."""

    def overdue(self) -> None:
        """The answer's has passed."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Deadlines:
    """Two times of the loop, infinity for none. Either may be set to a later time, or to none, at no cost."""

    _owner: Owner
    client: float = math.inf
    answer: float = math.inf
    _armed_at: float = math.inf
    """When the timer looks."""
    _timer: asyncio.TimerHandle | None = None
    _loop: asyncio.AbstractEventLoop = dataclasses.field(default_factory=asyncio.get_running_loop)

    def client_by(self, seconds: float) -> None:
        """The client must send something within `seconds`."""
        at = self.client = self._loop.time() + seconds
        if at < self._armed_at:
            self._arm(at)

    def answer_by(self, at: float) -> None:
        """The answer must be complete at `at`."""
        self.answer = at
        if at < self._armed_at:
            self._arm(at)

    def close(self) -> None:
        """The connection is gone: nobody looks any more, and nothing refers to it in a circle (see `RequestReader`)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_at = -math.inf
        del self._owner

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
        if self.answer <= now:
            self.answer = math.inf
            self._owner.overdue()
        if self.client <= now:
            self.client = math.inf
            self._owner.late()
        at = min(self.client, self.answer)
        if at < self._armed_at:
            self._arm(at)
