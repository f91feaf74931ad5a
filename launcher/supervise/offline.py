"""Status and stop of a fleet whose runtime is gone, from its state files alone."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from launcher.base import procfs
from launcher.base.addresses import is_path, socket_path
from launcher.base.locks import LockOwner, is_locked, try_lock
from launcher.base.regular import read_json
from launcher.base.unix_socket import remove_stale
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.supervise import logs
from launcher.supervise.identity import RecordStore, Rejected, ServerRecord, mismatch, unrecorded
from launcher.supervise.owner import Orphan
from launcher.supervise.process import adopt, remove_container

LOCK_NAME = "runtime.lock"
_KILL_WAIT_S = 5.0
_LOOKS = 11
_LOOK_PAUSE_S = 0.025


class RuntimeAliveError(Exception):
    """A runtime holds the deployment's lock: ask that runtime instead."""


class OrphanReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `stop_orphans`: processes ended, and state files that were not trusted (nothing was signalled)."""

    stopped: tuple[Orphan, ...]
    rejected: tuple[Rejected, ...]


def living_records(store: RecordStore, deployment: str | None = None) -> tuple[list[ServerRecord], list[Rejected]]:
    """Records of our living processes, by state file or mark; and state files that cannot be trusted, with why.

    A file whose process has simply ended is in neither.
    """
    records, rejected = store.read(deployment)
    living, bad = [], list(rejected)
    for record in records:
        why = mismatch(record)
        if why is None:
            living.append(record)
        elif why.startswith("pid "):
            bad.append(Rejected(path=str(store.path(record.name)), reason=why))
    begun = [record for record in records if not record.pid]
    return living + unrecorded(store.directory, {record.name for record in living}, begun), bad


def offline_status(state_dir: Path) -> FleetStatus:
    """Status of a fleet whose runtime is gone: the processes that live, from the state files in `state_dir`.

    `runtime_pid` is set when a runtime lives after all (ask that one), and 0 when its lock is held by an unknown
    process. `deployment` is the directory's name; a state file that is not trusted gives a `failed` entry with the
    reason.
    """
    store = RecordStore(state_dir)
    living, rejected = living_records(store)
    runtime = runtime_pid(state_dir)
    without = "runs without a runtime"
    if runtime and procfs.is_suspended(runtime):
        without = f"its runtime (pid {runtime}) is stopped by a signal: `kill -CONT {runtime}` lets it go on"
    processes = [
        ProcessStatus(
            name=record.name,
            kind=record.kind,
            state="ready" if record.ready_s is not None else "starting",
            port=record.port,
            socket=socket_path(record.host),
            pid=record.pid,
            model=record.model,
            tier=record.tier,
            roles=record.roles,
            started_at=record.started_at or None,
            ready_s=record.ready_s,
            restarts=record.restarts,
            error=without if record.input_digest else f"{without}, and no state file says so",
            log_file=record.log_file,
            log_tail=logs.tail(Path(record.log_file), 20),
            measured_bytes=procfs.memory_bytes(record.pid),
        )
        for record in living
    ]
    processes += [
        ProcessStatus(
            name=Path(bad.path).stem, kind="server", state="failed", port=0, error=f"state file: {bad.reason}"
        )
        for bad in rejected
        if Path(bad.path).stem not in {record.name for record in living}
    ]
    return FleetStatus(
        deployment=state_dir.name,
        input_digest=next((r.input_digest for r in living if r.input_digest), ""),
        runtime_pid=runtime,
        front=None,
        ready=False,
        processes=tuple(sorted(processes, key=lambda p: p.name)),
    )


def stop_orphans(state_dir: Path, names: Collection[str] = (), *, grace_s: float | None = None) -> OrphanReport:
    """Stop exactly the processes that a dead runtime of `state_dir` left: SIGTERM, grace, SIGKILL. Blocks.

    With `names`, only those. `grace_s` None: each server's own. Holds the runtime's lock meanwhile, so that none
    starts. Raises RuntimeAliveError when a runtime lives.
    """
    with _no_runtime(state_dir):
        store = RecordStore(state_dir)
        living, rejected = living_records(store)
        stopped = stop_records([r for r in living if not names or r.name in names], grace_s=grace_s)
        for orphan in stopped:
            if orphan.outcome != "survived":
                store.forget(orphan.name)
        records, _ = store.read()
        for record in records:
            if record.name not in {r.name for r in living} and mismatch(record) is not None:
                store.forget(record.name)
                if is_path(record.host):
                    remove_stale(record.host)
        with suppress(OSError):
            (state_dir / "control.sock").unlink(missing_ok=True)
    return OrphanReport(stopped=stopped, rejected=tuple(rejected))


def stop_records(records: Sequence[ServerRecord], *, grace_s: float | None = None) -> tuple[Orphan, ...]:
    """End the processes of `records`, all at once, and wait; a pid that is another process now is left alone."""
    taken = [(record, running) for record in records if (running := adopt(record)) is not None]
    for _, running in taken:
        running.terminate()
    outcomes: dict[int, Literal["stopped", "killed", "survived"]] = {}  # by pid: two may have one name
    begun = time.monotonic()
    for record, running in taken:
        limit_s = record.stop_grace_s if grace_s is None else grace_s
        if running.wait_gone(max(0.0, begun + limit_s - time.monotonic())):
            outcomes[record.pid] = "stopped"
    left = [(record, running) for record, running in taken if record.pid not in outcomes]
    for _, running in left:
        running.kill()
    begun = time.monotonic()
    for record, running in left:
        gone = running.wait_gone(max(0.0, begun + _KILL_WAIT_S - time.monotonic()))
        outcomes[record.pid] = "killed" if gone else "survived"
    for record, running in taken:
        running.release()
        remove_container(record.argv)
    for record in records:  # one that ended meanwhile left its socket, too
        if is_path(record.host):
            remove_stale(record.host)
    return tuple(Orphan(name=r.name, pid=r.pid, outcome=outcomes[r.pid]) for r, _ in taken)


def runtime_pid(state_dir: Path) -> int | None:
    """Pid of the holder of the runtime's lock; 0: a process that the lock does not name; None: the lock is free."""
    holder = runtime_holder(state_dir)
    return None if holder is None else holder.pid


def runtime_holder(state_dir: Path) -> LockOwner | None:
    """The holder of the runtime's lock (`pid` 0: unknown); None when it is free.

    A lock file that names no living process is read again for 0.25 s: its holder is just taking or dropping the lock.
    """
    for attempt in range(_LOOKS):
        if attempt:
            time.sleep(_LOOK_PAUSE_S)
        if not is_locked(state_dir / LOCK_NAME):
            return _holder_of_lost(state_dir)
        holder = _named_holder(state_dir / LOCK_NAME)
        if holder is not None:
            return holder
    return LockOwner(pid=0, start_ticks=0, boot_id="")


def _holder_of_lost(state_dir: Path) -> LockOwner | None:
    """A runtime that lives although its lock was removed: the parent of a marked process that still has it open."""
    if (state_dir / LOCK_NAME).exists():
        return None
    for record in unrecorded(state_dir / "servers", ()):
        stat = procfs.proc_stat(record.pid)
        parent = procfs.proc_stat(stat.ppid) if stat is not None and stat.ppid > 1 else None
        if parent is not None and f"{state_dir / LOCK_NAME} (deleted)" in procfs.open_files(parent.pid):
            return LockOwner(pid=parent.pid, start_ticks=parent.start_ticks, boot_id=procfs.boot_id())
    return None


def _named_holder(lock: Path) -> LockOwner | None:
    """The holder that the lock file names, if that process lives."""
    holder = read_json(lock, LockOwner)
    if holder is None or holder.pid <= 1 or holder.boot_id != procfs.boot_id():
        return None
    stat = procfs.proc_stat(holder.pid)
    return holder if stat is not None and stat.start_ticks == holder.start_ticks else None


@contextmanager
def _no_runtime(state_dir: Path) -> Iterator[None]:
    """Hold the runtime's lock, so that none starts meanwhile. Raises RuntimeAliveError."""
    if not state_dir.is_dir():
        yield
        return
    descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(descriptor):
            raise RuntimeAliveError(f"a runtime holds {state_dir / LOCK_NAME}")
        yield
    finally:
        os.close(descriptor)
