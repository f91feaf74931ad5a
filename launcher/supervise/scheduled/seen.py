"""Where a server is, by what its scheduler says of it. Pure."""

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
