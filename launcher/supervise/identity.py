"""Which process is ours: one typed state file per server, the check before every signal, and marks.

A state file is only a claim. A pid counts as ours when this boot, the start time and the argv agree with it. If the
file is lost or corrupt, the process is known by the mark in its environment: the path of its state file, set when we
spawned it. A copied mark endangers no other process: whoever sets it for a process of their own can only get that one
ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from launcher.base import procfs
from launcher.base.addresses import is_path, socket_path_fault
from launcher.base.decoding import UNREADABLE
from launcher.base.names import PROCESS
from launcher.base.regular import read_regular
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_LOOKS = 20
_LOOK_PAUSE_S = 0.001
_LATEST_S = 1e11
"""Largest Unix time that is accepted. An earlier time in the future means that the clock was set back since, which does
not matter: pid, start ticks and boot id identify the process."""
_LONGEST_S = 1e7
_HIGHEST_PID = 1 << 22
"""PID_MAX_LIMIT of Linux on 64 bits."""
_MARKED_GRACE_S = 10.0
MARKER = "LAUNCH_STATE_FILE"
"""Environment variable of every process we start: the path of its state file."""


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state file of one process. `pid` 0: about to be spawned; if it stays 0, the runtime died in between.

    `started_at` is Unix time; for `start_ticks` and `boot_id` see `launcher.base.procfs`.
    """

    schema: Literal["launch.state/v1"] = "launch.state/v1"
    deployment: str
    input_digest: str
    name: str
    kind: Literal["server", "service"]
    roles: tuple[str, ...]
    tier: str
    argv: tuple[str, ...]
    argv_digest: str
    host: str
    port: int
    model: str
    log_file: str
    stop_grace_s: float
    started_at: float
    pid: int = 0
    start_ticks: int = 0
    boot_id: str = ""
    ready_s: float | None = None
    restarts: int = 0


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A state file that cannot be trusted, and why."""

    path: str
    reason: str


class RecordStore:
    """The state files of one deployment, in `STATE_DIR/servers/NAME.json`.

    `write(path, data)` must replace a file atomically; None makes the store read-only. What the disk refuses is
    repeated later (`heal`); until then the process is found by its mark.
    """

    def __init__(self, state_dir: Path, write: Callable[[Path, bytes], None] | None = None) -> None:
        """`state_dir` need not exist for reading."""
        self.directory = state_dir / "servers"
        self._write = write
        self._saved: dict[str, ServerRecord] = {}
        """Records that should be on disk, by name."""
        self._over: set[str] = set()
        """Names whose state files are still to be removed."""
        self._trouble: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Path of the state file of `name`."""
        return self.directory / f"{name}.json"

    def keep(self, record: ServerRecord) -> None:
        """Write the state file of `record.name`; where that is impossible, `heal` does it later."""
        if self._write is None:
            raise RuntimeError("this store is read-only")
        self._saved[record.name] = record
        self._over.discard(record.name)
        try:
            self._write(self.path(record.name), msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        except OSError as error:
            self._failed(record.name, "written", error)
        else:
            self._trouble.pop(record.name, None)

    def forget(self, name: str) -> None:
        """Remove the state file of `name`, whose process has ended; where that is impossible, `heal` does it later."""
        self._saved.pop(name, None)
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            self._over.add(name)
            self._failed(name, "removed", error)
        else:
            self._over.discard(name)
            self._trouble.pop(name, None)

    def discard(self, bad: Rejected) -> None:
        """Remove a state file that cannot be trusted, where that is possible."""
        with contextlib.suppress(OSError):
            Path(bad.path).unlink(missing_ok=True)

    def heal(self) -> tuple[str, ...]:
        """Repeat failed writes and removals, rewrite files that are gone. Returns what still fails, one line each."""
        for name in tuple(self._over):
            self.forget(name)
        for record in tuple(self._saved.values()):
            if record.name in self._trouble or not os.path.lexists(self.path(record.name)):
                self.keep(record)
        return tuple(self._trouble[name] for name in sorted(self._trouble))

    def _failed(self, name: str, what: str, error: OSError) -> None:
        """Remember and log a problem; it is logged once as long as it stays the same."""
        problem = f"the state file {self.path(name)} cannot be {what}: {error.strerror or error}"
        if self._trouble.get(name) != problem:
            self._trouble[name] = problem
            _LOG.warning("%s", problem)

    def read(self, deployment: str | None = None) -> tuple[tuple[ServerRecord, ...], tuple[Rejected, ...]]:
        """The valid records, sorted by name, and the rejected files: torn, foreign, empty, or of another version.

        A file is foreign when it names another server than its own name says, or another deployment.
        """
        records, rejected = [], []
        for path in sorted(self.directory.glob("*.json")):
            result = _read(path, deployment)
            if isinstance(result, Rejected):
                rejected.append(result)
            else:
                records.append(result)
        return tuple(records), tuple(rejected)


def _read(path: Path, deployment: str | None) -> ServerRecord | Rejected:
    try:
        record = msgspec.json.decode(read_regular(path), type=ServerRecord)
    except (OSError, *UNREADABLE) as error:
        return Rejected(path=str(path), reason=f"unreadable: {error}")
    if record.name != path.stem or (deployment is not None and record.deployment != deployment):
        return Rejected(path=str(path), reason=f"it describes {record.name!r} of deployment {record.deployment!r}")
    wrong = _impossible(record)
    return record if wrong is None else Rejected(path=str(path), reason=f"impossible: {wrong}")


def _impossible(record: ServerRecord) -> str | None:
    """A value that no runtime writes and that would break its users; None: there is none."""
    limits = (
        ("started_at", record.started_at, _LATEST_S),
        ("stop_grace_s", record.stop_grace_s, _LONGEST_S),
        ("ready_s", record.ready_s or 0, _LONGEST_S),
        ("port", record.port, 65535),
        ("pid", record.pid, _HIGHEST_PID),
        ("start_ticks", record.start_ticks, 1 << 63),
        ("restarts", record.restarts, 1 << 31),
    )
    for name, value, highest in limits:
        if not 0 <= value <= highest:
            return f"{name} {str(value)[:40]}"
    if not PROCESS.fullmatch(record.name) or not record.argv:
        return f"name {record.name[:40]!r}, argv {record.argv[:1]!r}"
    if is_path(record.host) and (record.port or socket_path_fault(record.host) is not None):
        return f"host {record.host[:120]!r}"
    if record.log_file and ("\0" in record.log_file or not Path(record.log_file).is_absolute()):
        return f"log_file {record.log_file!r}"
    return None


def argv_agrees(argv: tuple[str, ...], running: tuple[str, ...]) -> bool:
    """Whether a process that was started as `argv` may show `running` now.

    Equal; or `running` is the end of `argv`, as after `numactl … llama-server …`; or `argv` is the end of
    `running`, as for a script behind an interpreter.
    """
    if not argv or not running:
        return False
    return argv[-len(running) :] == running or running[-len(argv) :] == argv


def argv_compatible(argv: tuple[str, ...], running: tuple[str, ...]) -> bool:
    """Like `argv_agrees`, for a process that other facts show to be ours: a user's wrapper may run another program.

    `exec /elsewhere/llama-server "$@"` keeps the arguments.
    """
    return argv_agrees(argv, running) or (len(argv) > 1 and argv[1:] == running[1:])


def mismatch(record: ServerRecord) -> str | None:
    """Why `record.pid` is not the process of `record`; None when it is."""
    if record.pid <= 1:
        return "no process was recorded"
    if record.boot_id != procfs.boot_id():
        return "the machine was restarted since"
    stat = procfs.proc_stat(record.pid)
    if stat is None or stat.state in ("Z", "X"):
        return "the process has ended"
    if stat.start_ticks != record.start_ticks:
        return f"pid {record.pid} now belongs to another process (started at another time)"
    running = _settled_cmdline(record.pid)
    if not running:
        return "the process has ended"
    if not argv_compatible(record.argv, running):
        shown = " ".join(running)[:120]
        return f"pid {record.pid} runs something else: {shown}"
    return None


def _settled_cmdline(pid: int) -> tuple[str, ...]:
    """The argv of `pid`; empty only if it has ended (in the middle of an exec it is empty for an instant)."""
    for _ in range(_LOOKS):
        running = procfs.cmdline(pid)
        stat = procfs.proc_stat(pid)
        if running or stat is None or stat.state in ("Z", "X"):
            break
        time.sleep(_LOOK_PAUSE_S)
    return running


def marked_deployments(root: Path) -> frozenset[str]:
    """Names of the deployments with state below `root` that have a running process, by its mark alone.

    Only processes whose environment may be read: of our own user, or as root of everybody.
    """
    marks = (procfs.environment(pid, MARKER) for pid in procfs.pids())
    states = (Path(mark).parent.parent for mark in marks if mark is not None)
    return frozenset(state.name for state in states if state.parent == root)


def unrecorded(directory: Path, known: Collection[str], begun: Iterable[ServerRecord] = ()) -> list[ServerRecord]:
    """Records, as far as /proc tells, of marked processes whose names are not `known`.

    `directory`: that of the state files. `begun`: records without a pid, whose runtime died between spawn and write.
    Without a fitting record the `input_digest` is empty: the command line is known, the plan behind it is not.
    """
    written = {record.name: record for record in begun}
    found = []
    for pid in procfs.pids():
        mark = procfs.environment(pid, MARKER)
        if mark is None:
            continue
        path = Path(mark)
        if path.parent != directory or path.suffix != ".json" or path.stem in known:
            continue
        stat, argv = procfs.proc_stat(pid), procfs.cmdline(pid)
        if stat is None or stat.session != pid or stat.state == "Z" or not argv:
            continue  # what a server forked carries its mark too, and ends with its session
        record = written.get(path.stem)
        if record is None or not argv_compatible(record.argv, argv):
            record = ServerRecord(
                deployment=directory.parent.name,
                input_digest="",
                name=path.stem,
                kind="server",
                roles=(),
                tier="",
                argv=argv,
                argv_digest="",
                host="",
                port=0,
                model="",
                log_file=str(directory.parent / "logs" / f"{path.stem}.log"),
                stop_grace_s=_MARKED_GRACE_S,
                started_at=0.0,
            )
        birth = {"pid": pid, "start_ticks": stat.start_ticks, "boot_id": procfs.boot_id()}
        found.append(msgspec.structs.replace(record, **birth))
    return found


def new_record(spec: ProcessSpec, deployment: str, input_digest: str, log_file: str, restarts: int) -> ServerRecord:
    """The record of a process that is about to be spawned as `spec`."""
    unit = spec.unit
    return ServerRecord(
        deployment=deployment,
        input_digest=input_digest,
        name=unit.name,
        kind=spec.unit.kind,
        roles=unit.roles,
        tier=unit.tier,
        argv=unit.argv,
        argv_digest=unit.argv_digest,
        host=unit.host,
        port=unit.port,
        model=unit.model,
        log_file=log_file,
        stop_grace_s=spec.policy.stop_grace_s,
        started_at=time.time(),
        restarts=restarts,
    )


def completed(record: ServerRecord, spec: ProcessSpec) -> ServerRecord:
    """`record` completed from `spec`, if it was found by its mark and runs the command line of `spec`."""
    if record.input_digest or not argv_agrees(spec.unit.argv, record.argv):
        return record
    known = new_record(spec, record.deployment, "", record.log_file, record.restarts)
    found = {field: getattr(record, field) for field in ("started_at", "pid", "start_ticks", "boot_id", "ready_s")}
    return msgspec.structs.replace(known, **found)
