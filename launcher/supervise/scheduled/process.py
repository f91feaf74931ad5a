"""A server that a scheduler runs for us: asked for, seen by what the scheduler says of it, ended. I/O."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from launcher.supervise.owner import Ending
from launcher.supervise.scheduled.error import SchedulerError
from launcher.supervise.scheduled.seen import Seen

_LOG = logging.getLogger("launch.supervise")
_SETTLE_S = 1.0
"""How long what was asked for may take to show, where it was asked for no longer just after."""


class Cluster(Protocol):
    """What a process needs of whoever watches and scales."""

    def now(self, name: str) -> Seen:
        """Where the server `name` is, as far as is known."""

    async def ask_none_of_group(self, name: str) -> None:
        """Wait until nothing is left of the other members of its exclusive group, nor of an earlier run of it."""

    async def scale(self, name: str, wanted: int) -> None:
        """Have it run (1) or not (0), whatever has to be waited for. Raises SchedulerError where the cluster refuses.

        Returns without that where something else is wanted meanwhile.
        """

    async def until_gone(self, name: str) -> None:
        """Wait until nothing of it is on any node."""

    def leave(self, process: ScheduledProcess) -> None:
        """`process` is told nothing more."""

    async def ending(self, name: str, how: Seen | None) -> Ending:
        """What is said of its end. `how`: as it was seen last; None where we ended it."""


class ScheduledProcess:
    """One process: the first run that is seen after the start. It has no pid here."""

    pid = 0

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Of a server that runs, or is about to; else `begin` starts it."""
        self.name = name
        self._cluster = cluster
        self._ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._run = ""
        self.address: tuple[str, int] | None = None
        """See `launcher.supervise.owner`."""
        self._begun = True
        self._showed = False
        """Something of it was seen."""
        self._ending = False
        self._on_exit: Callable[[Ending], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._looks = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Have it started; what is there before that is not it."""
        self._begun = False
        self._later(self._start())

    async def started(self) -> int:
        """See `launcher.supervise.owner`; 0, which is no process of this machine."""
        return await asyncio.shield(self._ready)

    @property
    def waits(self) -> bool:
        """See `launcher.supervise.owner`."""
        coming = not self._run and not self._ending
        return coming and (not self._begun or self._cluster.now(self.name).waits)

    def watch(self, on_exit: Callable[[Ending], None], on_end: Callable[[], None]) -> None:
        """See `launcher.supervise.owner`."""
        self._on_exit, self._on_end = on_exit, on_end
        asyncio.get_running_loop().call_soon(self.look)

    def terminate(self) -> None:
        """Have it ended: by SIGTERM, and after a grace by SIGKILL, both the scheduler's."""
        if not self._ending:
            self._ending = True
            self._later(self._end(None))

    def kill(self) -> None:
        """The same: the scheduler does it when the grace is over."""
        self.terminate()

    def release(self) -> None:
        """See `launcher.supervise.owner`."""
        for task in self._tasks:
            task.cancel()
        self._cluster.leave(self)

    async def log_mark(self) -> object:
        """Where it is; something new each time while it waits for a node or an image, which is nothing of its own."""
        now = self._cluster.now(self.name)
        return next(self._looks) if now.stage == "coming" else now

    def look(self) -> None:
        """What is known of it may have changed."""
        if self._ending or not self._begun or self._on_exit is None:
            return
        now = self._cluster.now(self.name)
        self._showed = self._showed or now.stage != "none"
        if not self._run and now.stage == "running":
            self._run, self.address = now.run, now.address
            self._ready.set_result(0)
        elif (self._run and (now.stage, now.run) != ("running", self._run)) or now.stage == "over" or now.hopeless:
            self._ended(now)

    def _ended(self, how: Seen) -> None:
        """It ended by itself, or cannot start."""
        self._ending = True
        if self._on_end is not None and self._run:
            self._on_end()
        self._later(self._end(how))

    async def _start(self) -> None:
        """Wait until nothing is in its way, then have it scaled up. What the cluster refuses is an end."""
        try:
            await self._cluster.ask_none_of_group(self.name)
            await self._cluster.scale(self.name, 1)
        except SchedulerError as error:
            if not self._ending:
                self._ending = True
                await self._report(Seen(stage="none", why=str(error), hopeless=True))
            return
        self._begun = True
        self.look()

    async def _end(self, how: Seen | None) -> None:
        """Have it started no more, wait until nothing is left, and report. `how`: None where we ended it."""
        try:
            await self._cluster.scale(self.name, 0)
        except SchedulerError as error:  # what may not be scaled is not ours to end; whatever is left of it counts
            _LOG.error("%s is not ended: %s", self.name, error)
        if not self._showed:
            await asyncio.sleep(_SETTLE_S)
        await self._cluster.until_gone(self.name)
        await self._report(how)

    async def _report(self, how: Seen | None) -> None:
        self._ready.cancel()
        ending = await self._cluster.ending(self.name, how)
        self._cluster.leave(self)
        if self._on_exit is not None:
            self._on_exit(ending)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
