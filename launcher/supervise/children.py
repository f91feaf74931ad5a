"""Processes that are children of the runtime: spawned, found again by their state files, with logs in files. I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from launcher.base import procfs
from launcher.base.addresses import is_path
from launcher.base.unix_socket import prepare_socket_path, remove_stale
from launcher.ir.live import Manager
from launcher.supervise import logs, process, slots
from launcher.supervise.causes import obstacle
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import RecordStore, Rejected, ServerRecord, mismatch
from launcher.supervise.offline import living_records, stop_records
from launcher.supervise.owner import Orphan, RefusedError, Watcher
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")


class Children(RecordStore):
    """A `launcher.supervise.owner.ProcessOwner` whose processes are children of the runtime.

    Each has a state file, which `write(path, data)` replaces atomically.
    """

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
        super().__init__(state_dir, write)
        self._deployment = deployment
        self.log_dir = state_dir / "logs"
        self._inherited = process.inherited()
        self.log_files = log_files
        self.log_max_bytes = log_max_bytes

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord, watcher: Watcher) -> process.RunningProcess:
        """Write the state file, then spawn; without a file the process is found by its mark. Raises RefusedError."""
        del level  # `spec` is it
        problem = obstacle(spec)
        if problem is not None:
            raise RefusedError(problem)
        self.keep(record)
        try:
            logs.shift(Path(record.log_file), self.log_files)
            if spec.unit.slot_save_path is not None:
                slots.prepare(spec.unit.slot_save_path)
            if is_path(spec.unit.host):
                prepare_socket_path(spec.unit.host)
            child = process.spawn(spec.unit, record, self._inherited[spec.unit.kind], self.path(record.name))
        except OSError as error:
            cause = f"cannot start {spec.unit.argv[0]}: {error}"
            raise RefusedError(Diagnosis(code="supervise/cannot-execute", cause=cause, remedy="")) from None
        child.watch(watcher)
        return child

    def adopt(self, record: ServerRecord, watcher: Watcher) -> process.RunningProcess | None:
        """See `launcher.supervise.owner`."""
        found = process.adopt(record)
        if found is not None:
            found.watch(watcher)
        return found

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """Our living processes, from state files and marks; `specs` is not used."""
        del specs
        records, rejected = await asyncio.to_thread(living_records, self, self._deployment)
        for bad in rejected:
            self.discard(bad)
        return records, rejected

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """End the processes of `records`: SIGTERM, and SIGKILL after the grace period."""
        ended = await asyncio.to_thread(stop_records, records)
        for orphan in ended:
            self.forget(orphan.name)
        return ended

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """Remove containers of `specs`, and state files and unix sockets whose process is gone."""
        for record in self.read()[0]:
            if mismatch(record) is not None:
                self.forget(record.name)
                if is_path(record.host):
                    remove_stale(record.host)
        left = [spec.unit.argv for spec in specs if spec.unit.container]
        await asyncio.gather(*(asyncio.to_thread(process.remove_container, argv) for argv in left))

    async def trim_log(self, name: str) -> None:
        """Rotate the log of `name` if it is longer than `log_max_bytes`."""
        log = self.log_dir / f"{name}.log"
        if logs.size_bytes(log) > self.log_max_bytes:
            try:
                await asyncio.to_thread(logs.cut, log, self.log_files, self.log_max_bytes)
            except OSError:
                _LOG.exception("cannot rotate %s", log)

    def pss_bytes(self, pid: int) -> int | None:
        """Proportional set size (PSS), as the kernel reports it."""
        return procfs.pss_bytes(pid)
