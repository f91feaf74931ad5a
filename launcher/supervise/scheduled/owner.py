"""What the owners of a scheduler's processes have in common: one scale at a time, one who follows. I/O."""

from __future__ import annotations

import abc
import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from launcher.supervise.identity import ServerRecord
from launcher.supervise.owner import Ending, Orphan
from launcher.supervise.scheduled.election import Election
from launcher.supervise.scheduled.error import SchedulerError
from launcher.supervise.scheduled.process import ScheduledProcess
from launcher.supervise.scheduled.seen import Seen
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_CONFLICT = 409


class ScheduledOwner(abc.ABC):
    """The half of `launcher.supervise.owner.ProcessOwner` that asks no scheduler anything.

    Nothing is changed but by who leads (`election`).
    """

    outlives = True
    local = False
    pause_s: float
    """Before a call that failed is made again; twice as long each time, up to `pause_max_s`."""
    pause_max_s: float

    def __init__(self, election: Election, groups: dict[str, str]) -> None:
        """`groups`: of servers that take turns."""
        self.election = election
        self._groups = groups
        self._processes: dict[str, ScheduledProcess] = {}
        self._wanted: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    # --- the runtime's --------------------------------------------------------------------------------------

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord) -> ScheduledProcess:
        """Never refuses at once: what the scheduler says against it is an end."""
        del level, record  # there is no smaller way to run
        process = self.attached(spec.name)
        process.begin()
        return process

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """Scale them to none, and wait until nothing is left."""

        async def ended(name: str) -> Orphan:
            try:
                await self.scale(name, 0)
                await self.until_gone(name)
            except SchedulerError as error:
                _LOG.error("%s is not ended: %s", name, error)
                return Orphan(name=name, pid=0, outcome="survived")
            return Orphan(name=name, pid=0, outcome="stopped")

        return tuple(await asyncio.gather(*(ended(record.name) for record in records)))

    def keep(self, record: ServerRecord) -> None:
        """Nothing to do."""
        del record  # the scheduler remembers

    def forget(self, name: str) -> None:
        """Nothing to do."""
        del name  # the scheduler forgets

    def heal(self) -> tuple[str, ...]:
        """Nothing of it is on our own disk."""
        return ()

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """Nothing to do."""
        del specs  # what a run leaves behind is the scheduler's to remove

    def pss_bytes(self, pid: int) -> int | None:
        """None."""
        del pid  # of another machine
        return None

    # --- a process's ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def now(self, name: str) -> Seen:
        """See `launcher.supervise.scheduled.process.Cluster`."""

    @abc.abstractmethod
    async def until_gone(self, name: str) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""

    async def ask_none_of_group(self, name: str) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        await self.known()
        if self.now(name).stage == "over":  # an earlier run, which a scheduler may start again and again
            await self.scale(name, 0)
        group = self._groups.get(name)
        rivals = [n for n, g in self._groups.items() if g == group and n != name]
        await self.wait_while(
            lambda: self.now(name).stage in ("ending", "over") or any(self.now(r).stage != "none" for r in rivals)
        )

    async def scale(self, name: str, wanted: int) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        self._wanted[name] = wanted
        pause_s, said = self.pause_s, ""
        async with self._turns.setdefault(name, asyncio.Lock()):
            while self._wanted[name] == wanted:
                try:
                    await self.scale_once(name, wanted)
                except SchedulerError as error:
                    if not error.passes:
                        raise
                    if error.status == _CONFLICT:
                        continue  # somebody changed it meanwhile: it is read again
                    if str(error) != said:
                        said = str(error)
                        _LOG.warning("%s: %s", name, said)
                    await asyncio.sleep(pause_s)
                    pause_s = min(self.pause_max_s, pause_s * 2)
                else:
                    return

    def leave(self, process: ScheduledProcess) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        if self._processes.get(process.name) is process:
            del self._processes[process.name]

    # --- following ------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Look at what runs from now on."""
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self.look_on())

    async def close(self) -> None:
        """Look no more."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    @abc.abstractmethod
    async def look_on(self) -> None:
        """Look at what runs, for ever, and `tell` whenever it has changed."""

    @abc.abstractmethod
    async def known(self) -> None:
        """Wait until it is known what runs."""

    @abc.abstractmethod
    async def scale_once(self, name: str, wanted: int) -> None:
        """Have it run (1) or not (0). Raises SchedulerError."""

    def may_change(self) -> None:
        """Raises SchedulerError where another front leads."""
        if not self.election.leads:
            raise SchedulerError(503, "this front does not lead")

    def tell(self) -> None:
        """Tell who waits that something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()
        for process in tuple(self._processes.values()):
            process.look()

    async def wait_while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`."""
        while holds():
            await self._changed.wait()

    def attached(self, name: str) -> ScheduledProcess:
        """The process `name` as it is seen from now on."""
        process = self._processes[name] = ScheduledProcess(self, name)
        self.follow()
        return process

    @abc.abstractmethod
    async def ending(self, name: str, how: Seen | None) -> Ending:
        """See `launcher.supervise.scheduled.process.Cluster`."""
