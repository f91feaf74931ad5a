"""State of a server as a scheduler shows it, and the scheduler's errors. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Stage = Literal["none", "coming", "running", "over", "ending"]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """State of a server. `none`: nothing of it is on any node; `over`: a run of it ended, and another would follow.

    `run`: identifies the run while it is running; another run is another process. `why`: the scheduler's own words for
    what it waits for, or how it ended. `code`: exit code, 128 and more for a signal.
    """

    stage: Stage
    run: str = ""
    why: str = ""
    code: int | None = None
    oom_killed: bool = False
    hopeless: bool = False
    """It will not run until the plan or the cluster is changed."""
    waits: bool = False
    """It has no node yet, and may wait for long: its start timeout has not begun."""
    address: tuple[str, int] | None = None
    """Host and port at which it listens, while it is running; None: those of the plan."""


class SchedulerError(Exception):
    """The scheduler refused, or could not be asked.

    `status`: as in HTTP; 0: no complete answer in time, so it may have acted.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_transient(self) -> bool:
        """Whether the call may be repeated: unreachable, busy, failing, changed meanwhile, or our token has expired."""
        return self.status in (0, 401, 408, 409, 410, 429) or self.status >= 500
