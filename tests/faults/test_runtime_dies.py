"""The runtime itself is killed or stopped, in every state; commands meet; its state files are tampered with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.base.procfs import is_suspended
from launcher.errors import HostError, SuperviseError
from launcher.files.state import asked_at_ns, call_off, start_under_way
from launcher.runtime import ControlClient, NoRuntimeError, run, spawn_detached
from launcher.supervise import LOCK_NAME, end_runtime, events, offline_status, stop_orphans
from tests.children import killed_on_failure
from tests.locks import lock_owner
from tests.supervise.conftest import SUPERVISOR, fake
from tests.supervise.test_runtime import alive, foreground, pids, wait_until

FreePort = Callable[[], int]


def kill_runtime(pid: int, state_dir: Path) -> None:
    """SIGKILL, and wait until the kernel dropped its lock."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lock_owner(state_dir / LOCK_NAME) is None)


def left(state_dir: Path) -> dict[str, int | None]:
    """What runs without a runtime, as `launch status` shows it."""
    return {p.name: p.pid for p in offline_status(state_dir).processes}


def until_line(runtime: subprocess.Popen[bytes], word: bytes) -> None:
    """Read events of a runtime in the foreground up to one with `word`."""
    assert runtime.stderr is not None
    assert any(word in line for line in runtime.stderr)


def test_killed_while_starting(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime while it starts servers → `status` shows them; the next `up` adopts what it finds."""
    a, b = free_port(), free_port()
    directory = deploy(fake("a", a), fake("b", b, "slow-loading", after=("a",)))
    runtime = foreground(directory)
    until_line(runtime, b'"name":"b"')
    kill_runtime(runtime.pid, state_dir)
    runtime.communicate()
    found = left(state_dir)
    assert set(found) == {"a", "b"}
    spawn_detached(directory)
    assert pids(state_dir) == found
    assert httpx.post(f"{deploy.front}/completion", json={"model": "b"}, timeout=20).status_code == 200


def test_killed_while_ready(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime while it serves → servers live on; `stop --all` ends exactly these, and nothing else."""
    runtime = spawn_detached(deploy(fake("a", free_port()), fake("b", free_port(), "grandchild")))
    found = left(state_dir)
    kill_runtime(runtime, state_dir)
    assert left(state_dir) == found
    report = stop_orphans(state_dir)
    assert {o.name for o in report.stopped} == {"a", "b"}
    assert not any(alive(pid) for pid in found.values())


def test_killed_while_stopping(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime while it stops servers → the one that had not ended is shown, and stopped by `stop`."""
    slow = fake("slow", free_port(), "ignore-term", stop_grace_s=60)
    runtime = foreground(deploy(fake("a", free_port()), slow))
    until_line(runtime, b"FleetReady")
    runtime.send_signal(signal.SIGTERM)
    until_line(runtime, b"ServerStopped")
    kill_runtime(runtime.pid, state_dir)
    runtime.communicate()
    assert set(left(state_dir)) == {"slow"}
    (gone,) = stop_orphans(state_dir, grace_s=0.2).stopped
    assert (gone.outcome, left(state_dir)) == ("killed", {})


def ask_later(front: str, name: str) -> threading.Thread:
    """A request whose answer does not matter."""

    def ask() -> None:
        try:
            httpx.post(f"{front}/completion", json={"model": name}, timeout=20)
        except httpx.TransportError:
            return

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_killed_while_swapping(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime in the middle of a swap → at most one owner of the device is left; `up` serves again."""
    port = free_port()
    pair = [fake(n, port, "slow-loading", exclusive="g", default=n == "a") for n in "ab"]
    directory = deploy(*pair)
    runtime = foreground(directory)
    until_line(runtime, b"FleetReady")
    asking = ask_later(deploy.front, "b")
    until_line(runtime, b'ServerStarting","name":"b')
    kill_runtime(runtime.pid, state_dir)
    runtime.communicate()
    asking.join()
    assert set(left(state_dir)) == {"b"}
    spawn_detached(directory)
    assert [p for p, pid in pids(state_dir).items() if pid] == ["b"]
    assert httpx.post(f"{deploy.front}/completion", json={"model": "a"}, timeout=20).status_code == 200


def test_killed_while_reloading(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime in the middle of a reload → the next `up` ends what is old, adopts what is as compiled."""
    a, b = free_port(), free_port()
    runtime = foreground(deploy(fake("a", a), fake("b", b)))
    until_line(runtime, b"FleetReady")
    before = left(state_dir)
    directory = deploy(fake("a", a, "slow-loading", note="new"), fake("b", b))

    def reload() -> None:
        with pytest.raises(NoRuntimeError), ControlClient(state_dir) as client:
            client.reload()

    reloading = threading.Thread(target=reload)
    reloading.start()
    until_line(runtime, b'ServerStarting","name":"a')
    kill_runtime(runtime.pid, state_dir)
    runtime.communicate()
    reloading.join()
    started = left(state_dir)["a"]
    spawn_detached(directory)
    assert pids(state_dir) == {"a": started, "b": before["b"]}


def test_stopped_runtime(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """SIGSTOP of the runtime → `status` answers at once from its state files; `stop --all` continues it and ends it."""
    runtime = spawn_detached(deploy(fake("a", free_port())))
    os.kill(runtime, signal.SIGSTOP)
    wait_until(lambda: is_suspended(runtime))
    begun = time.monotonic()
    with pytest.raises(NoRuntimeError, match="stopped by a signal"):
        ControlClient(state_dir)
    (shown,) = offline_status(state_dir).processes
    assert "stopped by a signal" in (shown.error or "")
    assert time.monotonic() - begun < 20
    said: list[str] = []
    end_runtime(state_dir, wait_s=30, report=said.append)
    assert any("SIGCONT" in line for line in said)
    assert left(state_dir) == {}


def test_stop_before_the_lock(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """`stop --all` while `up` still compiles → the start is called off and says so; a later `up` is not."""
    directory = deploy(fake("a", free_port()))
    asked = asked_at_ns()
    with start_under_way():
        assert call_off()
    assert not call_off()
    with pytest.raises(SuperviseError) as caught:
        spawn_detached(directory, asked_ns=asked)
    assert caught.value.findings[0].code == "supervise/stopped-early"
    assert left(state_dir) == {}
    spawn_detached(directory, asked_ns=asked_at_ns())
    assert set(left(state_dir)) == {"a"}


def test_two_runtimes(deploy: Any, free_port: FreePort) -> None:
    """A second runtime for the same deployment → refused with the pid that holds the lock; the first serves on."""
    directory = deploy(fake("a", free_port()))
    pid = spawn_detached(directory)
    with pytest.raises(HostError, match=f"already run by process {pid}"):
        run(directory)
    assert httpx.get(f"{deploy.front}/ready").status_code == 200


def forge(true: bytes, kind: str) -> bytes:
    """A state file that is not what it was."""
    plain = msgspec.json.decode(true)
    match kind:
        case "empty":
            return b""
        case "torn":
            return true[: len(true) // 2]
        case "foreign":
            return msgspec.json.encode({**plain, "deployment": "another"})
        case "old":
            return msgspec.json.encode({**plain, "schema": "launch.state/v0"})
    raise AssertionError(kind)


def tamper(deploy: Any, state_dir: Path, free_port: FreePort, kind: str) -> None:
    """Kill the runtime, change a state file, start again: not trusted, told, and the server's process found anyway."""
    directory = deploy(fake("a", free_port()))
    kill_runtime(spawn_detached(directory), state_dir)
    path = state_dir / "servers/a.json"
    before = left(state_dir)["a"]
    path.write_bytes(forge(path.read_bytes(), kind))
    assert left(state_dir) == {"a": before}
    seen: list[Any] = []
    spawn_detached(directory, on_event=seen.append)
    assert [e.path for e in seen if isinstance(e, events.StateIgnored)] == [str(path)]
    assert pids(state_dir)["a"] == before
    assert httpx.post(f"{deploy.front}/completion", json={"model": "a"}, timeout=20).status_code == 200


def test_torn_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Torn state → not trusted, told; the server is found by the mark that its environment carries, and adopted."""
    tamper(deploy, state_dir, free_port, "torn")


def test_empty_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Empty state → as torn state."""
    tamper(deploy, state_dir, free_port, "empty")


def test_foreign_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Foreign state: it names another deployment → as torn state."""
    tamper(deploy, state_dir, free_port, "foreign")


def test_old_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Old-version state → as torn state."""
    tamper(deploy, state_dir, free_port, "old")


def test_removed_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """State files removed by hand under a killed runtime → the servers are shown, and stopped, all the same."""
    kill_runtime(spawn_detached(deploy(fake("a", free_port()), fake("b", free_port()))), state_dir)
    before = left(state_dir)
    for path in (state_dir / "servers").iterdir():
        path.unlink()
    assert left(state_dir) == before
    assert {o.name for o in stop_orphans(state_dir).stopped} == {"a", "b"}
    assert not any(alive(pid) for pid in before.values())


def test_forged_state(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Forged state with a reused pid → told, the stranger never signalled, by `up` nor by `stop`; started anew."""
    directory = deploy(fake("a", free_port()))
    runtime = spawn_detached(directory)
    path = state_dir / "servers/a.json"
    true = path.read_bytes()
    end_runtime(state_dir, wait_s=30, report=lambda _: None)
    assert not alive(runtime)
    with killed_on_failure(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])) as stranger:
        forged = msgspec.json.encode({**msgspec.json.decode(true), "pid": stranger.pid})
        path.write_bytes(forged)
        report = stop_orphans(state_dir)
        assert (report.stopped, len(report.rejected)) == ((), 1)
        path.write_bytes(forged)
        seen: list[Any] = []
        spawn_detached(directory, on_event=seen.append)
        assert any("another process" in e.reason for e in seen if isinstance(e, events.StateIgnored))
        assert pids(state_dir)["a"] != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


def test_ctrl_c_twice(deploy: Any, free_port: FreePort) -> None:
    """Ctrl-C while a server ignores SIGTERM → drains; a second Ctrl-C ends it at once."""
    slow = msgspec.structs.replace(SUPERVISOR, drain_timeout_s=60)
    runtime = foreground(deploy(fake("stubborn", free_port(), "ignore-term", stop_grace_s=60), supervisor=slow))
    until_line(runtime, b"FleetReady")
    runtime.send_signal(signal.SIGINT)
    until_line(runtime, b"ServerStopping")
    runtime.send_signal(signal.SIGINT)
    assert runtime.wait(15) == 0
    runtime.communicate()
