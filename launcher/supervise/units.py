"""Processes as systemd units: one unit per server, started and stopped by the runtime, watched by pidfd. I/O.

A unit keeps running when the runtime ends; while no runtime lives, systemd restarts a unit that is always on. While one
lives, the runtime decides about restarts, so a restart by systemd is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.base import procfs
from launcher.base.procfs import birth
from launcher.ir.live import Manager
from launcher.supervise import logs
from launcher.supervise.causes import obstacle
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import RecordStore, Rejected, ServerRecord, argv_agrees, new_record
from launcher.supervise.owner import Ending, Orphan, ProcessOwner, Watcher
from launcher.supervise.spec import ProcessSpec
from launcher.supervise.systemctl import Systemctl, UnitState, unit_names

_LOG = logging.getLogger("launch.supervise")
_START_LOOK_S = 0.1
_SETTLE_S = 0.02
_SETTLE_MAX_S = 0.25
_KEY_FLAG = "--api-key-file"


class UnitProcess:
    """The main process of one unit."""

    address = None
    waits = False

    def __init__(
        self, systemd: Systemctl, unit: str, watcher: Watcher, pid: int = 0, since: float | None = None
    ) -> None:
        """`pid` and `since` (Unix time): of a process that runs already; otherwise `begin` starts it."""
        self.unit = unit
        self.pid = pid
        self._since = time.time() if since is None else since
        self._systemd = systemd
        self._ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._watcher = watcher
        self._pidfd = -1
        self._tasks: set[asyncio.Task[Any]] = set()
        if pid:
            self._runs()

    def begin(self, spec: ProcessSpec) -> None:
        """Start the unit as `spec`, in a task."""
        self._later(self._start(spec))

    async def started(self) -> int:
        """See `launcher.supervise.owner`."""
        return await asyncio.shield(self._ready)

    def terminate(self) -> None:
        """Stop the unit: systemd sends SIGTERM, and SIGKILL after the unit's own limit."""
        self._later(self._act("stop --no-block"))

    def kill(self) -> None:
        """Send SIGKILL to all processes of the unit."""
        self._later(self._act("kill --signal=SIGKILL"))

    def release(self) -> None:
        """See `launcher.supervise.owner`."""
        for task in self._tasks:
            task.cancel()
        self._unwatch()

    async def log_mark(self) -> object:
        """The last line of its journal."""
        return await self._systemd.words(self.unit, self.pid, self._since, 1)

    async def _start(self, spec: ProcessSpec) -> None:
        """Start the unit, or take its process if it runs already. A start that fails is reported as an end."""
        before = state = await self._look()
        errors, problem = "", None
        if not state.runs:
            problem = await asyncio.to_thread(obstacle, spec, programs=False)
            if problem is not None and state.will_return:
                state = await self._look()  # systemd may have started it meanwhile: then the port is its own
                problem = None if state.runs else problem
        if not state.runs and problem is None:
            state, errors = await self._start_unit(state)
        if state.runs:
            self.pid = state.pid
            self._runs()
            return
        self._ready.cancel()
        if problem is None and state.started_s <= before.started_s:
            cause = errors or f"{self.unit} is {state.active} ({state.result})"
            remedy = f"systemctl status {self.unit}; `launch install` puts units and rights in place"
            problem = Diagnosis(code="supervise/unit-refused", cause=cause, remedy=remedy)
        await self._report(state, problem)

    async def _start_unit(self, state: UnitState) -> tuple[UnitState, str]:
        """Start the unit; returns its state once it runs or has ended, and the error message of systemctl."""
        # however often it was started before (StartLimitBurst=): that counts what systemd does by itself
        await self._systemd.do("reset-failed", self.unit)
        starting = asyncio.create_task(self._systemd.do("restart" if state.will_return else "start", self.unit))
        try:
            while not starting.done():
                await asyncio.wait({starting}, timeout=_START_LOOK_S)
                state = await self._look()
                if state.runs:
                    break
        except asyncio.CancelledError:
            starting.cancel()
            raise
        if starting.done():
            return state, starting.result()
        self._tasks.add(starting)  # it waits for the unit's gate; nobody has to
        starting.add_done_callback(self._tasks.discard)
        return state, ""

    async def _look(self) -> UnitState:
        return (await self._systemd.show((self.unit,)))[self.unit]

    def _runs(self) -> None:
        """Its process is known: watch it."""
        self._ready.set_result(self.pid)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:  # it has ended already
            self._ended()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self._unwatch()
        self._watcher.on_end()
        self._later(self._settle())

    async def _settle(self) -> None:
        """Wait until systemd, too, has no process of it left, then report the end."""
        pause_s = _SETTLE_S
        while True:
            state = await self._look()
            if state.is_over or (state.pid and state.pid != self.pid) or state.load == "not-found":
                break
            await asyncio.sleep(pause_s)
            pause_s = min(_SETTLE_MAX_S, pause_s * 1.5)
        await self._report(state, None)

    async def _report(self, state: UnitState, refused: Diagnosis | None) -> None:
        """Report how it ended, after cancelling a restart by systemd."""
        if state.will_return:
            await self._systemd.do("stop", self.unit)
        tail: tuple[str, ...] = ()
        if refused is None:  # pid 0: it ended before anybody saw it
            tail = await self._systemd.tail(self.unit, self.pid, self._since, logs.TAIL_LINES)
        killed = state.result == "oom-kill"
        self._watcher.on_exit(Ending(code=state.code, tail=tail, oom_killed=killed, refused=refused))

    async def _act(self, verb: str) -> None:
        """Run a systemctl verb once the process exists."""
        await self.started()
        errors = await self._systemd.do(verb, self.unit)
        if errors:
            _LOG.error("%s: %s", self.unit, errors)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class SystemdUnits(RecordStore, ProcessOwner):
    """A `launcher.supervise.owner.ProcessOwner` of the units `PREFIX-NAME.service` that `launch install` wrote.

    `write(path, data)` replaces a state file atomically: when a process became ready is kept for the next runtime.
    """

    outlives = True
    local = True
    log_dir = None

    def __init__(
        self, deployment: str, state_dir: Path, write: Callable[[Path, bytes], None], *, prefix: str, user: bool
    ) -> None:
        """`user`: the service manager of our own user. Makes no call to systemd."""
        super().__init__(state_dir, write)
        self.manager: Manager = "systemd --user" if user else "systemd"
        self._deployment = deployment
        self._systemd = Systemctl(user=user)
        self._prefix = prefix
        self._units: dict[int, str] = {}
        """Unit names by pid, from the last call of `living`."""

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord, watcher: Watcher) -> UnitProcess:
        """Start the unit in a task; whatever prevents it is reported as an end, never raised."""
        del record
        process = UnitProcess(self._systemd, unit_names(self._prefix, spec.name, level)[level], watcher)
        process.begin(spec)
        return process

    def adopt(self, record: ServerRecord, watcher: Watcher) -> UnitProcess | None:
        """See `launcher.supervise.owner`."""
        unit, stat = self._units.get(record.pid), procfs.proc_stat(record.pid)
        if unit is None or stat is None or stat.start_ticks != record.start_ticks:
            return None
        return UnitProcess(self._systemd, unit, watcher, record.pid, record.started_at)

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """The running units of `specs`, except those that are forked and not executed yet (`Type=exec`)."""
        names = {n: unit_names(self._prefix, n, len(s.fallbacks)) for n, s in specs.items() if not s.unit.builtin}
        states = await self._systemd.show(unit for units in names.values() for unit in units)
        known = {record.name: record for record in self.read(self._deployment)[0]}
        records = []
        self._units = {}
        for name, units in names.items():
            spec = specs[name]
            for unit, planned in zip(units, (spec, *spec.fallbacks), strict=True):
                is_forked = states[unit].sub == "start" and spec.unit.kind == "server"
                if states[unit].runs and not is_forked:
                    self._units[states[unit].pid] = unit
                    records.append(self._record(planned, unit, states[unit], known.get(name)))
        return records, []

    def _record(self, spec: ProcessSpec, unit: str, state: UnitState, known: ServerRecord | None) -> ServerRecord:
        """The record of a unit's process; when it became ready is kept from an earlier runtime."""
        running = procfs.cmdline(state.pid)
        same = argv_agrees(_as_unit(spec.unit.argv, unit), running) or spec.unit.kind == "service"
        found = new_record(spec, self._deployment, "", "", state.restarts)
        found = msgspec.structs.replace(
            found,
            **birth(state.pid),
            argv=spec.unit.argv if same else running,
            started_at=time.time() - time.monotonic() + state.started_s,
        )
        if known is not None and (known.pid, known.start_ticks) == (found.pid, found.start_ticks):
            found = msgspec.structs.replace(found, ready_s=known.ready_s)
        return found

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """Stop the units of `records`, and wait."""
        units = [self._units[record.pid] for record in records if record.pid in self._units]
        errors = await self._systemd.do("stop", *units) if units else ""
        if errors:
            _LOG.error("%s", errors)
        return tuple(Orphan(name=r.name, pid=r.pid, outcome="survived" if errors else "stopped") for r in records)

    def pss_bytes(self, pid: int) -> int | None:
        """Bytes charged to the unit's control group, each page once; None unless `pid` leads its session."""
        stat = procfs.proc_stat(pid)
        if stat is None or stat.session != pid:
            return None
        try:
            group = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::/")[2].strip()
            return int((Path("/sys/fs/cgroup") / group / "memory.current").read_text())
        except (OSError, ValueError):
            return None


def _as_unit(argv: tuple[str, ...], unit: str) -> tuple[str, ...]:
    """The command line inside the unit, whose key file is a systemd credential."""
    words = list(argv)
    for at, word in enumerate(words):
        if at and words[at - 1] == _KEY_FLAG:
            words[at] = f"/run/credentials/{unit}/api-key"
        elif word.startswith(f"{_KEY_FLAG}="):
            words[at] = f"{_KEY_FLAG}=/run/credentials/{unit}/api-key"
    return tuple(words)
