"""Processes as Slurm jobs: submitted by the runtime that leads, watched in the queue, cancelled. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from launcher.ir.fleet import FleetManifest, SlurmUnit
from launcher.ir.live import Manager
from launcher.supervise import logs
from launcher.supervise.diagnosis import Diagnosis, diagnose
from launcher.supervise.identity import Rejected, ServerRecord, new_record
from launcher.supervise.owner import Ending, Watcher
from launcher.supervise.scheduled import (
    CALL_SHARE,
    Election,
    ScheduledOwner,
    ScheduledProcess,
    SchedulerError,
    Seen,
    identity,
)
from launcher.supervise.slurm import commands
from launcher.supervise.slurm.queue import Job, Place, by_server, seen, surplus
from launcher.supervise.slurm.shared import LOGS, LeaseFile, SharedFiles
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_LOOK_S = 0.5
"""Seconds between two looks at the queue while a job is starting or ending."""
_REST_S = 4.0
"""Seconds between two looks otherwise: each asks the cluster's one controller."""
_GLANCE_S = 1.0
"""Seconds between two looks at the files that jobs write, which cost Slurm nothing."""
_SOON_S = 0.1
"""Seconds before a look that is waited for."""
_RUN = "launch: run "
"""Start of the log line that begins a run (`templates/slurm/job.sbatch.j2`)."""


class Jobs(ScheduledOwner):
    """The `launcher.supervise.owner.ProcessOwner` of a Slurm cluster."""

    manager: Manager = "slurm"
    pause_s = 0.25
    pause_max_s = 5.0
    log_dir: Path
    """On the file system that nodes and fronts share."""

    def __init__(self, slurm: SlurmUnit, manifest: FleetManifest, *, address: str) -> None:
        """`address`: host and port of our front, for the fronts that wait."""
        limit_s = slurm.lease_s * CALL_SHARE
        self._files = SharedFiles(Path(slurm.shared_dir), limit_s=limit_s)
        self.log_dir = self._files.directory / LOGS
        whose = identity(address, str(os.getpid()), secrets.token_hex(4))
        super().__init__(Election(LeaseFile(self._files, limit_s=limit_s), "", whose, slurm.lease_s), {})
        self._jobs: dict[str, list[Job]] = {}
        """Jobs by server, as the queue shows them."""
        self._places: dict[int, Place] = {}
        self._reporting_jobs: dict[int, str] = {}
        """Jobs that may have written where they run, with their server."""
        self._looked_at = float("-inf")
        """When the last complete look at the queue began (loop time)."""
        self._submitted: dict[str, tuple[int, float]] = {}
        """By server: the job that runs it or will, and since when it is known (loop time)."""
        self._look_now = asyncio.Event()
        self.take_over(manifest)

    def take_over(self, manifest: FleetManifest) -> None:
        """Take over the scripts, settings and groups for jobs submitted from now on."""
        assert isinstance(manifest.slurm, SlurmUnit)  # noqa: S101 - the caller looked
        self._units = manifest.slurm.jobs
        self._settings = manifest.supervisor
        self._names = {server: unit.name for server, unit in self._units.items()}
        self._groups = {s.name: s.exclusive for s in manifest.servers if s.exclusive is not None}

    # --- the runtime's --------------------------------------------------------------------------------------

    def adopt(self, record: ServerRecord, watcher: Watcher) -> ScheduledProcess | None:
        """The process of `record`, which `living` found; it may still wait for its node."""
        job = self._living(record.name)
        if job is None:
            return None
        self._submitted[record.name] = job.id, self._looked_at
        return self.attach(record.name, watcher)

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """Servers with a job that is not over. None where another front leads."""
        if not self.election.leads:
            return [], []
        await self.known()
        if not self.election.leads:
            return [], []
        there = [n for n in specs if seen(self._jobs.get(n, ()), self._places).stage in ("coming", "running", "over")]
        return [new_record(specs[n], "slurm", "job", "", 0) for n in there], []

    async def trim_log(self, name: str) -> None:
        """Rotate the log of `name` if it is longer than `log_max_bytes`."""
        path, settings = self.log_dir / f"{name}.log", self._settings
        with contextlib.suppress(SchedulerError):  # it is looked at again
            await self._files.do(lambda: logs.cut(path, settings.log_files, settings.log_max_bytes))

    # --- a process's ----------------------------------------------------------------------------------------

    def now(self, name: str) -> Seen:
        """See `ScheduledOwner`. A submitted job that is gone counts as a process that ended."""
        found = seen(self._jobs.get(name, ()), self._places)
        job, since = self._submitted.get(name, (0, 0.0))
        if job and found.stage == "none":
            if self._looked_at <= since:
                return Seen(stage="coming", why="its job was submitted just now", waits=True)
            return Seen(stage="over", why=found.why or "its job is gone", code=found.code, oom_killed=found.oom_killed)
        return found

    async def until_gone(self, name: str) -> None:
        """See `ScheduledOwner`."""
        while True:
            await self.known()
            jobs = self._jobs.get(name, ())
            if all(job.over for job in jobs):
                with contextlib.suppress(SchedulerError):
                    await self._files.forget(name, [job.id for job in jobs])
                return

    async def ending(self, name: str, how: Seen | None) -> Ending:
        """See `ScheduledOwner`. The end of its log says more than Slurm does."""
        path = self.log_dir / f"{name}.log"
        try:
            tail = _of_last_run(await self._files.do(lambda: logs.tail(path)))
        except SchedulerError:
            tail = ()
        if how is None:
            return Ending(code=None, tail=tail)
        return Ending(code=how.code, tail=tail, refused=_diagnosis(how, tail))

    # --- following ------------------------------------------------------------------------------------------

    async def follow_forever(self) -> None:
        """See `ScheduledOwner`."""
        pause_s, failure = self.pause_s, ""
        while True:
            self._look_now.clear()
            try:
                await self._look()
                pause_s, failure = self.pause_s, ""
                await self._rest()
            except SchedulerError as error:
                if str(error) != failure:
                    failure = str(error)
                    _LOG.warning("the jobs of this fleet: %s", failure)
                await asyncio.sleep(pause_s)
                pause_s = min(self.pause_max_s, pause_s * 2)

    async def _rest(self) -> None:
        """Wait until the next look: soon if one is waited for, or a job has written news. Raises SchedulerError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (_LOOK_S if self._is_changing() else _REST_S)
        while (left_s := until - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _GLANCE_S)):
                    await self._look_now.wait()
                    await asyncio.sleep(_SOON_S)
                    return
            if left_s > _GLANCE_S and await self._files.places(self._reporting_jobs) != self._places:
                return

    async def _look(self) -> None:
        """Read the queue and the places of running jobs, cancel surplus ones. Raises SchedulerError."""
        begun = asyncio.get_running_loop().time()
        jobs = by_server(await commands.queue(), self._names)
        running = {job.id: name for name, own in jobs.items() for job in own if job.state == "RUNNING"}
        ended = {j.id: n for n, own in jobs.items() for j in own if j.over and self._submitted.get(n, (0,))[0] == j.id}
        self._reporting_jobs = running | ended
        self._places = await self._files.places(self._reporting_jobs)
        self._jobs, self._looked_at = jobs, begun
        self.notify_processes()
        if self.election.leads and not any(lock.locked() for lock in self._turns.values()):
            await commands.cancel([job for own in jobs.values() for job in surplus(own)])

    def _is_changing(self) -> bool:
        if any(process.waits for process in self._processes.values()):
            return True
        return any(self.now(name).stage in ("coming", "ending", "over") for name in self._jobs)

    async def known(self) -> None:
        """Wait for a look at the queue that began after this call."""
        self.follow()
        since = asyncio.get_running_loop().time()
        while self._looked_at <= since:
            self._look_now.set()
            await self._changed.wait()

    # --- submitting -----------------------------------------------------------------------------------------

    async def scale_once(self, name: str, wanted: int) -> None:
        """See `ScheduledOwner`."""
        await (self._submit(name) if wanted else self._cancel(name))

    async def _submit(self, name: str) -> None:
        """Submit a job, unless there is one: an earlier submission may have succeeded without an answer."""
        await self.known()
        job = self._living(name)
        if job is not None:
            self._submitted[name] = job.id, self._looked_at
            return
        self.require_leading()
        number = await commands.submit(self._units[name].script)
        self._submitted[name] = number, asyncio.get_running_loop().time()
        self._look_now.set()

    async def _cancel(self, name: str) -> None:
        await self.known()
        self._submitted.pop(name, None)
        jobs = [job.id for job in self._jobs.get(name, ()) if not job.over and job.state != "COMPLETING"]
        if not jobs:
            return
        self.require_leading()
        await commands.cancel(jobs)
        self._look_now.set()

    def _living(self, name: str) -> Job | None:
        living = [job for job in self._jobs.get(name, ()) if not job.over and job.state != "COMPLETING"]
        return next((job for job in living if job.state == "RUNNING"), living[0] if living else None)


def _of_last_run(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of the last run in a log that all runs share."""
    begun = [position for position, line in enumerate(lines) if line.startswith(_RUN)]
    return lines[begun[-1] + 1 :] if begun else lines


def _diagnosis(how: Seen, tail: tuple[str, ...]) -> Diagnosis:
    """The cause of its end: Slurm's own doing first, then what its log says."""
    if how.oom_killed:
        cause = "its job took more memory than it has, and was killed"
        return Diagnosis(code="supervise/oom-killed", cause=cause, remedy="plan more memory, or a smaller context")
    if how.hopeless:
        remedy = "`scontrol show job` says what its job waits for; `sbatch --test-only` of its script what is refused"
        return Diagnosis(code="supervise/job-refused", cause=how.why, remedy=remedy)
    if how.code:
        return diagnose(-(how.code - 128) if how.code > 128 else how.code, tail)
    remedy = "`sinfo -R` says what became of the node, `sacct` of the job"
    return Diagnosis(code="supervise/job-ended", cause=how.why, remedy=remedy)
