"""State files: what is trusted, what is signalled, what an orphan is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.base import procfs
from launcher.base.locks import LockOwner
from launcher.files import write_atomic
from launcher.files.state import OwnedLock
from launcher.supervise import (
    LOCK_NAME,
    RecordStore,
    RuntimeAliveError,
    logs,
    offline_status,
    process,
    stop_orphans,
)
from launcher.supervise.identity import MARKER, ServerRecord, argv_agrees, argv_compatible, mismatch
from launcher.supervise.offline import stop_records
from tests.supervise.test_runtime import wait_until

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


def record(**changes: Any) -> ServerRecord:
    """A record with plain values."""
    base = ServerRecord(
        deployment="test",
        input_digest="sha256:0",
        name="one",
        kind="server",
        roles=("chat",),
        tier="hot",
        argv=SLEEPER,
        argv_digest="",
        host="127.0.0.1",
        port=1,
        model="m",
        log_file="",
        stop_grace_s=2,
        started_at=0,
    )
    return msgspec.structs.replace(base, **changes)


Sleeper = Callable[..., tuple[subprocess.Popen[bytes], ServerRecord]]


@pytest.fixture
def sleeper(no_orphans: None) -> Iterator[Sleeper]:
    """Starts a process in its own session, with a record that describes it truly."""
    children = []

    def start(**changes: Any) -> tuple[subprocess.Popen[bytes], ServerRecord]:
        env = changes.pop("env", None)
        child = subprocess.Popen(changes.get("argv", SLEEPER), start_new_session=True, env=env)
        children.append(child)
        return child, record(**{**procfs.birth(child.pid), **changes})

    yield start
    for child in children:
        child.kill()
        child.wait()


def save(state_dir: Path, *records: ServerRecord) -> RecordStore:
    """Write state files."""
    store = RecordStore(state_dir, write_atomic)
    for one in records:
        store.keep(one)
    return store


def ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether `child` ends."""
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_orphans_are_shown_and_exactly_they_are_stopped(state_dir: Path, sleeper: Sleeper) -> None:
    """Without a runtime: status lists what lives, stop ends it and nothing else."""
    ours, mine = sleeper()
    stranger, _ = sleeper(name="two")
    save(state_dir, mine)
    status = offline_status(state_dir)
    assert [(p.name, p.pid, p.state) for p in status.processes] == [("one", ours.pid, "starting")]
    report = stop_orphans(state_dir)
    assert [(o.name, o.outcome) for o in report.stopped] == [("one", "stopped")]
    assert ended(ours)
    assert stranger.poll() is None
    assert offline_status(state_dir).processes == ()


def test_of_two_with_one_name_each_is_ended(sleeper: Sleeper) -> None:
    """The first goes when it is asked, the second does not: it is killed, and said to be."""
    deaf = (sys.executable, "-S", "-u", "-c", "import signal,time; signal.signal(15, 1); print(); time.sleep(600)")
    easy, first = sleeper()
    hard, second = sleeper(argv=deaf, stop_grace_s=0.3)
    wait_until(lambda: shows_sigterm_ignored(hard.pid))
    report = stop_records([first, second])
    assert [(o.pid, o.outcome) for o in report] == [(easy.pid, "stopped"), (hard.pid, "killed")]
    assert ended(easy)
    assert ended(hard)


def shows_sigterm_ignored(pid: int) -> bool:
    """Whether the kernel says that the process ignores SIGTERM."""
    (line,) = (row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("SigIgn:"))
    return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def test_only_named_orphans_are_stopped(state_dir: Path, sleeper: Sleeper) -> None:
    """The others go on, and stay known."""
    (one, first), (two, second) = sleeper(), sleeper(name="two")
    save(state_dir, first, second)
    assert [o.name for o in stop_orphans(state_dir, ["two"]).stopped] == ["two"]
    assert (ended(two), one.poll()) == (True, None)
    assert [p.name for p in offline_status(state_dir).processes] == ["one"]


@pytest.mark.parametrize(
    "forgery",
    [
        {"start_ticks": 12345},
        {"boot_id": "another boot"},
        {"argv": ("/usr/bin/llama-server", "--port", "1")},
        {"pid": 1},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**31 - 1},
        {"pid": 2**70},
    ],
)
def test_a_forged_record_is_never_signalled(state_dir: Path, sleeper: Sleeper, forgery: dict[str, Any]) -> None:
    """A pid whose start time, boot or argv differ is somebody else's."""
    victim, true = sleeper()
    forged = msgspec.structs.replace(true, **forgery)
    assert mismatch(forged) is not None
    assert process.adopt(forged) is None
    if forged.pid < 2**63:
        save(state_dir, forged)
    assert stop_orphans(state_dir).stopped == ()
    assert victim.poll() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\x00\xff\xfe",
        msgspec.json.encode({"schema": "launch.state/v0", "name": "one"}),
        msgspec.json.encode({**msgspec.to_builtins(record()), "schema": "launch.state/v9"}),
        msgspec.json.encode({**msgspec.to_builtins(record()), "pid": "7"}),
        msgspec.json.encode(record(name="other")),
    ],
)
def test_a_state_file_that_is_not_whole_and_ours_is_reported(state_dir: Path, content: bytes) -> None:
    """Torn, empty, of another version, or of another server: named with a reason, never trusted."""
    (state_dir / "servers/one.json").write_bytes(content)
    (entry,) = offline_status(state_dir).processes
    assert (entry.name, entry.state, entry.pid) == ("one", "failed", None)
    assert "state file" in (entry.error or "")
    report = stop_orphans(state_dir)
    assert (report.stopped, len(report.rejected)) == ((), 1)


def test_a_process_whose_record_was_not_finished_is_found(state_dir: Path, sleeper: Sleeper) -> None:
    """The runtime died between spawn and write: the marker in the environment names the state file."""
    store = save(state_dir, record())
    child, _ = sleeper(env={MARKER: str(store.path("one"))})
    deadline = time.monotonic() + 60
    while not (report := stop_orphans(state_dir)).stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [o.pid for o in report.stopped] == [child.pid]
    assert ended(child)


def test_stop_orphans_refuses_while_a_runtime_lives(state_dir: Path, sleeper: Sleeper) -> None:
    """The lock decides; status then names the runtime."""
    child, mine = sleeper()
    save(state_dir, mine)
    lock = OwnedLock(state_dir / LOCK_NAME)
    lock.acquire(LockOwner(**procfs.birth(os.getpid())))
    with pytest.raises(RuntimeAliveError):
        stop_orphans(state_dir)
    assert offline_status(state_dir).runtime_pid == os.getpid()
    lock.release()
    assert offline_status(state_dir).runtime_pid is None
    assert child.poll() is None


def test_an_orphan_that_ignores_sigterm_is_killed(state_dir: Path, sleeper: Sleeper) -> None:
    """Grace, then SIGKILL, and the report says so."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child, mine = sleeper(argv=(sys.executable, "-S", "-c", script))
    ignored = re.compile(r"^SigIgn:\s*[0-9a-f]*([4-7c-f])[0-9a-f]{3}$", re.MULTILINE)  # SIGTERM is bit 14
    while not ignored.search(Path(f"/proc/{child.pid}/status").read_text()):
        time.sleep(0.01)
    save(state_dir, mine)
    assert [o.outcome for o in stop_orphans(state_dir, grace_s=0.2).stopped] == ["killed"]
    assert ended(child)


def test_an_absent_state_directory_is_an_empty_fleet(tmp_path: Path) -> None:
    """Nothing was ever started: nothing runs, nothing is stopped, nothing is created."""
    assert offline_status(tmp_path / "none").processes == ()
    assert stop_orphans(tmp_path / "none").stopped == ()
    assert not (tmp_path / "none").exists()


def test_a_zombie_is_dead(sleeper: Sleeper) -> None:
    """A process that ended and was not reaped yet is not ours any more."""
    child, mine = sleeper()
    child.kill()
    deadline = time.monotonic() + 60
    while (why := mismatch(mine)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert why == "the process has ended"


words = st.lists(st.text(max_size=3), min_size=1, max_size=5).map(tuple)


@settings(deadline=None)
@given(words, words)
def test_wrappers_agree_and_strangers_do_not(prefix: tuple[str, ...], argv: tuple[str, ...]) -> None:
    """`numactl … server …` may show as `server …`, a script behind its interpreter; another argv never."""
    assert argv_agrees(argv, argv)
    assert argv_agrees(prefix + argv, argv)
    assert argv_agrees(argv, prefix + argv)
    assert not argv_agrees(argv, ())
    assert not argv_agrees((*argv, "x"), (*argv, "y"))


def test_a_wrapper_that_puts_another_program_there(sleeper: Sleeper, tmp_path: Path) -> None:
    """A user's own `llama-server` of two lines: its process is still the one that was started."""
    wrapper = tmp_path / "sleep"
    wrapper.write_text('#!/bin/sh\nexec /bin/sleep "$@"\n')
    wrapper.chmod(0o755)
    child, mine = sleeper(argv=(str(wrapper), "600"))
    deadline = time.monotonic() + 60
    while procfs.cmdline(child.pid) != ("/bin/sleep", "600") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mismatch(mine) is None
    assert mismatch(msgspec.structs.replace(mine, argv=(str(wrapper), "601"))) is not None
    assert not argv_compatible(("a",), ("b",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_file", "/x\0y"),
        ("log_file", "relative.log"),
        ("started_at", 1e308),
        ("started_at", -1e308),
        ("stop_grace_s", 1e308),
        ("ready_s", -1.0),
        ("port", 70000),
        ("host", "/run/launch-a/http.sock"),
        ("host", "/etc/passwd"),
        ("pid", 1 << 40),
        ("pid", -5),
        ("start_ticks", 1 << 80),
        ("restarts", 1 << 40),
    ],
)
def test_a_record_with_impossible_values_is_rejected(
    state_dir: Path, sleeper: Sleeper, field: str, value: object
) -> None:
    """Shown as not trusted, with the field; nothing breaks and nothing is signalled."""
    child, mine = sleeper()
    plain = msgspec.to_builtins(mine) | {field: value}
    (state_dir / "servers/one.json").write_bytes(json.dumps(plain).encode())
    (shown,) = offline_status(state_dir).processes
    assert (shown.state, shown.log_file) == ("failed", None)
    assert "state file: " in (shown.error or "")
    assert field in (shown.error or "")
    assert stop_orphans(state_dir).stopped == ()
    assert child.poll() is None


def test_the_log_of_an_impossible_path_is_empty() -> None:
    """NUL and lone surrogates are no path; nobody gets a traceback for them."""
    assert logs.tail(Path("/x\0y")) == logs.tail(Path("/\ud800")) == ()


@pytest.mark.parametrize("place", ["servers/a.json", "runtime.lock"])
@pytest.mark.parametrize("target", ["/dev/zero", "/dev/full", "pipe"])
def test_devices_and_pipes_hold_nobody_up(tmp_path: Path, place: str, target: str) -> None:
    """A link to an endless device, and a pipe without a writer, in place of a state file or a lock."""
    (tmp_path / "servers").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / place).symlink_to(target if target.startswith("/") else tmp_path / target)
    status = offline_status(tmp_path)
    assert [p.state for p in status.processes] == (["failed"] if place.endswith("json") else [])
