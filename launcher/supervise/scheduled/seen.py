"""What a scheduler says: where a server is, or that it does not do what it is asked. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Stage = Literal["none", "coming", "running", "over", "ending"]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is. `none`: nothing of it is on any node; `over`: a run of it ended, and another would follow.

    `run`: which run of it it is, while it is running; another one is another process. `why`: the scheduler's own words
    for what it waits for, or how it ended. `code` is the exit code, 128 and more for a signal.
    """

    stage: Stage
    run: str = ""
    why: str = ""
    code: int | None = None
    oom_killed: bool = False
    hopeless: bool = False
    """It will not run before somebody changes something."""
    waits: bool = False
    """It has no node yet, and may wait for long: no time of its start has begun."""
    address: tuple[str, int] | None = None
    """Where it listens, while it is running; None: where the plan says."""


class SchedulerError(Exception):
    """The scheduler refused, or could not be asked.

    `status`: as HTTP has it; 0: no whole answer in time, so that it may have acted.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passes(self) -> bool:
        """Whether the same may be asked again: it was away, busy or broken, or our token has just run out."""
        return self.status in (0, 401, 408, 409, 410, 429) or self.status >= 500
