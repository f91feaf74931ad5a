"""Processes that are children of the runtime: spawned, found again by their state files, with logs in files. I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from launcher.base.addresses import is_path
from launcher.base.unix_socket import make_room, remove_stale
from launcher.ir.live import Manager
from launcher.supervise import container, logs, measuring, process, slots
from launcher.supervise.causes import obstacle, oom_kills
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import RecordStore, Rejected, ServerRecord, mismatch
from launcher.supervise.offline import living_records, stop_records
from launcher.supervise.owner import Ending, Orphan, RefusedError
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")


class Child:
    """One process, ours or adopted, with its log and, where it is one's client, its container."""

    address = None
    waits = False

    def __init__(self, running: process.RunningProcess, argv: tuple[str, ...], log: Path, host: str) -> None:
        """Not watched yet. `host`: where it listens."""
        self.running = running
        self._host = host
        self._argv = argv
        self._log = log
        self._oom_kills = oom_kills()
        self._ended: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.running.pid

    async def started(self) -> int:
        """At once."""
        return self.running.pid

    def watch(self, on_exit: Callable[[Ending], None], on_end: Callable[[], None]) -> None:
        """See `launcher.supervise.owner`. Its unix socket, or the container whose client it was, is removed before."""

        def exited(code: int | None) -> None:
            if is_path(self._host):
                remove_stale(self._host)
            if container.engine_and_name(self._argv) is None:
                on_exit(self._ending(code))
            else:
                on_end()
                self._ended = asyncio.get_running_loop().create_task(removed(code))

        async def removed(code: int | None) -> None:
            try:
                await asyncio.to_thread(container.remove, self._argv)
            finally:
                on_exit(self._ending(code))

        self.running.watch(exited)

    def _ending(self, code: int | None) -> Ending:
        try:
            killed = oom_kills() > self._oom_kills
        except (OSError, ValueError):  # no descriptor left: how it ended is all that is known
            killed = False
        return Ending(code=code, tail=logs.tail(self._log), oom_killed=killed)

    def terminate(self) -> None:
        """SIGTERM to its session."""
        self.running.terminate()

    def kill(self) -> None:
        """SIGKILL to its session."""
        self.running.kill()

    def release(self) -> None:
        """See `launcher.supervise.owner`."""
        self.running.release()

    async def log_mark(self) -> object:
        """The size of its log."""
        return logs.size_bytes(self._log)


class Children:
    """See `launcher.supervise.owner.ProcessOwner`. `write(path, data)` replaces a file atomically."""

    manager: Manager = "runtime"
    outlives = False
    local = True

    def __init__(
        self,
        deployment: str,
        state_dir: Path,
        write: Callable[[Path, bytes], None],
        *,
        log_files: int,
        log_max_bytes: int,
    ) -> None:
        """Starts nothing."""
        self._deployment = deployment
        self._state_dir = state_dir
        self._store = RecordStore(state_dir, write)
        self.log_files = log_files
        self.log_max_bytes = log_max_bytes

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord) -> Child:
        """Record, then spawn; what no disk records is found again by its mark. Raises RefusedError."""
        del level  # `spec` is it
        problem = obstacle(spec)
        if problem is not None:
            raise RefusedError(problem)
        self._store.save(record)
        log = self._log(spec.name)
        try:
            logs.shift(log, self.log_files)
            if spec.unit.slot_save_path is not None:
                slots.prepare(spec.unit.slot_save_path)
            if is_path(spec.unit.host):
                make_room(spec.unit.host)
            env = process.environment(spec.kind, spec.unit.env)
            running = process.spawn(spec.unit.argv, env, log, self._store.path(spec.name), spec.unit.oom_score_adjust)
        except OSError as error:
            cause = f"cannot start {spec.unit.argv[0]}: {error}"
            raise RefusedError(Diagnosis(code="supervise/cannot-execute", cause=cause, remedy="")) from None
        return Child(running, spec.unit.argv, log, spec.unit.host)

    def adopt(self, record: ServerRecord) -> Child | None:
        """See `launcher.supervise.owner`."""
        running = process.adopt(record)
        return None if running is None else Child(running, record.argv, self._log(record.name), record.host)

    def keep(self, record: ServerRecord) -> None:
        """Write its state file, now or when the disk lets us."""
        self._store.save(record)

    def forget(self, name: str) -> None:
        """Remove its state file, now or when the disk lets us."""
        self._store.remove(name)

    def heal(self) -> tuple[str, ...]:
        """See `launcher.supervise.owner`."""
        self._store.heal()
        return self._store.trouble()

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """By state files and marks, whatever `specs` there are now."""
        del specs
        records, rejected = await asyncio.to_thread(living_records, self._store, self._deployment)
        for bad in rejected:
            self._store.discard(bad)
        return records, rejected

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """SIGTERM, grace, SIGKILL."""
        ended = await asyncio.to_thread(stop_records, records)
        for orphan in ended:
            self._store.remove(orphan.name)
        return ended

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """Remove containers, and state files whose process is gone."""
        for record in self._store.read()[0]:
            if mismatch(record) is not None:
                self._store.remove(record.name)
                if is_path(record.host):
                    remove_stale(record.host)
        left = [spec.unit.argv for spec in specs if spec.container]
        await asyncio.gather(*(asyncio.to_thread(container.remove, argv) for argv in left))

    def log_file(self, name: str) -> Path | None:
        """`logs/NAME.log` below the state directory."""
        return self._log(name)

    def _log(self, name: str) -> Path:
        return self._state_dir / "logs" / f"{name}.log"

    async def trim_log(self, name: str) -> None:
        """Rotate it if it is too long."""
        log = self._log(name)
        if logs.size_bytes(log) > self.log_max_bytes:
            try:
                await asyncio.to_thread(logs.cut, log, self.log_files, self.log_max_bytes)
            except OSError:
                _LOG.exception("cannot rotate %s", log)

    def pss_bytes(self, pid: int) -> int | None:
        """The kernel's own figure."""
        return measuring.pss_bytes(pid)
