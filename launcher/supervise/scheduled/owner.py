"""What owners of scheduled processes have in common: processes, one scaling at a time, a follower task. I/O."""

from __future__ import annotations

import abc
import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from launcher.supervise.identity import ServerRecord
from launcher.supervise.owner import Ending, Orphan, ProcessOwner, Watcher
from launcher.supervise.scheduled.election import Election
from launcher.supervise.scheduled.seen import SchedulerError, Seen
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_CONFLICT = 409
_SETTLE_S = 1.0
"""Seconds that a process may take to show up after it was requested, if it was cancelled right after."""


class ScheduledOwner(ProcessOwner):
    """The part of `launcher.supervise.owner.ProcessOwner` that is the same for all schedulers.

    Only the front that leads (`election`) changes anything.
    """

    outlives = True
    local = False
    log_dir: Path | None = None
    """With the scheduler."""
    pause_s: float
    """Seconds before a failed call is repeated; doubled each time, up to `pause_max_s`."""
    pause_max_s: float

    def __init__(self, election: Election, groups: dict[str, str]) -> None:
        """`groups`: exclusive group by server, for those that have one."""
        self.election = election
        self._groups = groups
        self._processes: dict[str, ScheduledProcess] = {}
        self._wanted: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    # --- the runtime's --------------------------------------------------------------------------------------

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord, watcher: Watcher) -> ScheduledProcess:
        """Start the process in a task; a refusal by the scheduler is reported as an end, never raised."""
        del level, record  # there is no smaller way to run
        process = self.attach(spec.name, watcher)
        process.begin()
        return process

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """Scale the processes to 0, and wait until nothing of them is left."""

        async def ended(name: str) -> Orphan:
            try:
                await self.scale(name, 0)
                await self.until_gone(name)
            except SchedulerError as error:
                _LOG.error("%s is not ended: %s", name, error)
                return Orphan(name=name, pid=0, outcome="survived")
            return Orphan(name=name, pid=0, outcome="stopped")

        return tuple(await asyncio.gather(*(ended(record.name) for record in records)))

    # --- a process's ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def now(self, name: str) -> Seen:
        """Last known state of the server `name`."""

    @abc.abstractmethod
    async def until_gone(self, name: str) -> None:
        """Wait until nothing of `name` is left on any node."""

    async def wait_for_group(self, name: str) -> None:
        """Wait until no other member of its exclusive group, and no earlier run of it, is left."""
        await self.known()
        if self.now(name).stage == "over":  # an earlier run, which a scheduler may start again and again
            await self.scale(name, 0)
        group = self._groups.get(name)
        rivals = [n for n, g in self._groups.items() if g == group and n != name]
        await self.wait_while(
            lambda: self.now(name).stage in ("ending", "over") or any(self.now(r).stage != "none" for r in rivals)
        )

    async def scale(self, name: str, wanted: int) -> None:
        """Make `name` run (1) or not (0), repeating calls that fail for now. Raises SchedulerError on refusal.

        Returns early if another value is requested meanwhile.
        """
        self._wanted[name] = wanted
        pause_s, failure = self.pause_s, ""
        async with self._turns.setdefault(name, asyncio.Lock()):
            while self._wanted[name] == wanted:
                try:
                    await self.scale_once(name, wanted)
                except SchedulerError as error:
                    if not error.is_transient:
                        raise
                    if error.status == _CONFLICT:
                        continue  # somebody changed it meanwhile: it is read again
                    if str(error) != failure:
                        failure = str(error)
                        _LOG.warning("%s: %s", name, failure)
                    await asyncio.sleep(pause_s)
                    pause_s = min(self.pause_max_s, pause_s * 2)
                else:
                    return

    def detach(self, process: ScheduledProcess) -> None:
        """Send `process` no more updates."""
        if self._processes.get(process.name) is process:
            del self._processes[process.name]

    # --- following ------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Start following what runs, unless that has begun."""
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self.follow_forever())

    async def close(self) -> None:
        """Stop following."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    @abc.abstractmethod
    async def follow_forever(self) -> None:
        """Follow what runs, for ever, and call `notify_processes` whenever it has changed."""

    @abc.abstractmethod
    async def known(self) -> None:
        """Wait until it is known what runs."""

    @abc.abstractmethod
    async def scale_once(self, name: str, wanted: int) -> None:
        """Make `name` run (1) or not (0), in one try. Raises SchedulerError."""

    def require_leading(self) -> None:
        """Raise SchedulerError unless this front leads."""
        if not self.election.leads:
            raise SchedulerError(503, "this front does not lead")

    def notify_processes(self) -> None:
        """Wake `wait_while`, and let every process look at its state, which may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()
        for process in tuple(self._processes.values()):
            process.look()

    async def wait_while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`, which is tested again after every `notify_processes`."""
        while holds():
            await self._changed.wait()

    def attach(self, name: str, watcher: Watcher) -> ScheduledProcess:
        """A new object for the process `name`, which gets updates from now on."""
        process = self._processes[name] = ScheduledProcess(self, name, watcher)
        self.follow()
        asyncio.get_running_loop().call_soon(process.look)
        return process

    @abc.abstractmethod
    async def ending(self, name: str, how: Seen | None) -> Ending:
        """The report of its end. `how`: its last known state; None: the runtime ended it."""


class ScheduledProcess:
    """One process: the first run that is seen after the start. Its `pid` is 0, as it is not on this machine."""

    pid = 0

    def __init__(self, owner: ScheduledOwner, name: str, watcher: Watcher) -> None:
        """For a server that runs, or is about to; otherwise call `begin`."""
        self.name = name
        self._owner = owner
        self._ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._run = ""
        self.address: tuple[str, int] | None = None
        """See `launcher.supervise.owner`."""
        self._begun = True
        self._was_seen = False
        """The scheduler has shown something of it."""
        self._ending = False
        self._watcher = watcher
        self._looks = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Start it, in a task; runs seen before that are not taken for it."""
        self._begun = False
        self._later(self._start())

    async def started(self) -> int:
        """See `launcher.supervise.owner`; returns 0, which is no process of this machine."""
        return await asyncio.shield(self._ready)

    @property
    def waits(self) -> bool:
        """See `launcher.supervise.owner`."""
        coming = not self._run and not self._ending
        return coming and (not self._begun or self._owner.now(self.name).waits)

    def terminate(self) -> None:
        """End it: the scheduler sends SIGTERM, and SIGKILL after a grace period."""
        if not self._ending:
            self._ending = True
            self._later(self._end(None))

    def kill(self) -> None:
        """The same as `terminate`: the scheduler sends SIGKILL when the grace period is over."""
        self.terminate()

    def release(self) -> None:
        """See `launcher.supervise.owner`."""
        for task in self._tasks:
            task.cancel()
        self._owner.detach(self)

    async def log_mark(self) -> object:
        """Its state; a new value for each call while it waits for a node or an image, which is not its fault."""
        now = self._owner.now(self.name)
        return next(self._looks) if now.stage == "coming" else now

    def look(self) -> None:
        """React to its state, which may have changed."""
        if self._ending or not self._begun:
            return
        now = self._owner.now(self.name)
        self._was_seen = self._was_seen or now.stage != "none"
        if not self._run and now.stage == "running":
            self._run, self.address = now.run, now.address
            self._ready.set_result(0)
        elif (self._run and (now.stage, now.run) != ("running", self._run)) or now.stage == "over" or now.hopeless:
            self._ended(now)

    def _ended(self, how: Seen) -> None:
        """It has ended by itself, or cannot start: end it and report `how`."""
        self._ending = True
        if self._run:
            self._watcher.on_end()
        self._later(self._end(how))

    async def _start(self) -> None:
        """Wait for its exclusive group, then scale it up. A refusal is reported as an end."""
        try:
            await self._owner.wait_for_group(self.name)
            await self._owner.scale(self.name, 1)
        except SchedulerError as error:
            if not self._ending:
                self._ending = True
                await self._report(Seen(stage="none", why=str(error), hopeless=True))
            return
        self._begun = True
        self.look()

    async def _end(self, how: Seen | None) -> None:
        """Scale it down, wait until nothing is left, and report. `how`: None where the runtime ended it."""
        try:
            await self._owner.scale(self.name, 0)
        except SchedulerError as error:  # what may not be scaled is not ours to end; whatever is left of it counts
            _LOG.error("%s is not ended: %s", self.name, error)
        if not self._was_seen:
            await asyncio.sleep(_SETTLE_S)
        await self._owner.until_gone(self.name)
        await self._report(how)

    async def _report(self, how: Seen | None) -> None:
        self._ready.cancel()
        ending = await self._owner.ending(self.name, how)
        self._owner.detach(self)
        self._watcher.on_exit(ending)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
