"""Which process is ours: one typed state file a server, the check that comes before every signal, and marks.

A state file is only a claim. A pid counts as ours when this boot, the start time and the argv agree with it. Where the
file is lost or spoilt, a process is known by the mark that it carries in its environment: the path of its state file,
set when we spawned it. It names no stranger: who copies it into a process of his own can only have that process ended.
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
from launcher.base.addresses import is_path, wrong_path
from launcher.base.decoding import UNREADABLE
from launcher.base.names import PROCESS
from launcher.base.regular import read_regular
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_LOOKS = 20
_LOOK_PAUSE_S = 0.001
_LATEST_S = 1e11
"""Unix time that no clock shows. An earlier one in the future is a clock that was set back since, which means nothing:
pid, start ticks and boot say which process it is."""
_LONGEST_S = 1e7
_HIGHEST_PID = 1 << 22
"""PID_MAX_LIMIT of Linux on 64 bits."""
_MARKED_GRACE_S = 10.0
MARKER = "LAUNCH_STATE_FILE"
"""Environment variable of every process we start: the path of its state file."""


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state file of one process. `pid` 0: about to be spawned (its writer died in between if it stays so).

    `started_at` is Unix time; `start_ticks` and `boot_id` see `launcher.base.procfs`.
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
    remembered, and done later (`heal`): a process is found by its mark meanwhile.
    """

    def __init__(self, state_dir: Path, write: Callable[[Path, bytes], None] | None = None) -> None:
        """`state_dir` need not exist for reading."""
        self.directory = state_dir / "servers"
        self._write = write
        self._saved: dict[str, ServerRecord] = {}
        """What should be there, by name."""
        self._over: set[str] = set()
        """Names whose files should be gone, and are not."""
        self._trouble: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Where the state file of `name` lies."""
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
        """Have every file be there, or gone, as it should; what the disk refuses still, a line each."""
        for name in tuple(self._over):
            self.forget(name)
        for record in tuple(self._saved.values()):
            if record.name in self._trouble or not os.path.lexists(self.path(record.name)):
                self.keep(record)
        return tuple(self._trouble[name] for name in sorted(self._trouble))

    def _failed(self, name: str, what: str, error: OSError) -> None:
        """Remember and log it, once as long as it stays the same."""
        problem = f"the state file {self.path(name)} cannot be {what}: {error.strerror or error}"
        if self._trouble.get(name) != problem:
            self._trouble[name] = problem
            _LOG.warning("%s", problem)

    def read(self, deployment: str | None = None) -> tuple[tuple[ServerRecord, ...], tuple[Rejected, ...]]:
        """Every state file, sorted by name, and those that are torn, foreign, empty, or of another version.

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
    """A value that no runtime writes, and that would break whoever uses it; None when there is none."""
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
    if is_path(record.host) and (record.port or wrong_path(record.host) is not None):
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


def shows(argv: tuple[str, ...], running: tuple[str, ...]) -> bool:
    """The same of a process that is ours by other marks: a wrapper of the user may have put another program there.

    `exec /elsewhere/llama-server "$@"` leaves the arguments as they were.
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
    if not shows(record.argv, running):
        shown = " ".join(running)[:120]
        return f"pid {record.pid} runs something else: {shown}"
    return None


def _settled_cmdline(pid: int) -> tuple[str, ...]:
    """The argv of `pid`; empty only if it ended meanwhile (in the middle of an exec it is empty for an instant)."""
    for _ in range(_LOOKS):
        running = procfs.cmdline(pid)
        stat = procfs.proc_stat(pid)
        if running or stat is None or stat.state in ("Z", "X"):
            break
        time.sleep(_LOOK_PAUSE_S)
    return running


def marked_deployments(root: Path) -> frozenset[str]:
    """Names of the deployments with state below `root` of which a process runs, by its mark: whatever became of files.

    Only processes that we may ask: our own, or as root everybody's.
    """
    marks = (procfs.environment(pid, MARKER) for pid in procfs.pids())
    states = (Path(mark).parent.parent for mark in marks if mark is not None)
    return frozenset(state.name for state in states if state.parent == root)


def unrecorded(directory: Path, known: Collection[str], begun: Iterable[ServerRecord] = ()) -> list[ServerRecord]:
    """Records, as far as /proc tells, of marked processes whose names are not `known`.

    `directory` is that of the state files. `begun` are those without a pid: the runtime died between spawn and write.
    Of others the `input_digest` is empty: what they run is known, what they are is not.
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
        if record is None or not shows(record.argv, argv):
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
    """`record` with what `spec` says about it, if it was found by its mark and runs what `spec` would run."""
    if record.input_digest or not argv_agrees(spec.unit.argv, record.argv):
        return record
    known = new_record(spec, record.deployment, "", record.log_file, record.restarts)
    found = {field: getattr(record, field) for field in ("started_at", "pid", "start_ticks", "boot_id", "ready_s")}
    return msgspec.structs.replace(known, **found)
