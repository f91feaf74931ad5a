"""Commands that meet: a stop during a reload, a stop during a start, a reload during a start."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import SuperviseError
from launcher.runtime import ControlClient, NoRuntimeError, spawn_detached
from launcher.supervise import LOCK_NAME, end_runtime, events, offline_status, reach_runtime, runtime_holder
from launcher.supervise.control import SOCKET_NAME, control_socket
from tests.children import killed_on_failure
from tests.locks import lock_owner
from tests.supervise.conftest import fake, manifest
from tests.supervise.test_runtime import deploy, wait_until

__all__ = ["deploy"]

FreePort = Callable[[], int]


# httpcore leaves a socket that could not connect, because the runtime ended just then, to the collector
@pytest.mark.filterwarnings("ignore:.*socket.socket.*family=1:pytest.PytestUnraisableExceptionWarning")
def test_stop_during_reloads_leaves_no_server(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Eight reloads run and wait when everything is stopped: each is answered with a typed refusal, nothing lives."""
    names = ("a", "b", "c")
    spawn_detached(deploy(*(fake(name, free_port(), "slow-loading") for name in names)))
    refused: list[str] = []

    def reload() -> None:
        """One reload of everything; how it was refused."""
        try:
            with ControlClient(state_dir) as client:
                client.reload(names)
        except NoRuntimeError:
            return  # so late that nobody is there any more
        except SuperviseError as error:
            refused.append(error.findings[0].code)

    threads = [threading.Thread(target=reload) for _ in range(8)]
    with ControlClient(state_dir) as client:
        for thread in threads:
            thread.start()
        wait_until(lambda: any(p.state != "ready" for p in client.status().processes))
        client.stop()
    for thread in threads:
        thread.join(10)
    assert offline_status(state_dir).processes == ()
    assert set(refused) == {"supervise/stopping"}
    assert lock_owner(state_dir / LOCK_NAME) is None


async def test_a_reload_that_meets_the_end_starts_nothing(fleet: Any, free_port: FreePort) -> None:
    """The supervisor itself refuses: before, in the middle of, and after `stop_all`."""
    supervisor, watcher = fleet(a := fake("a", free_port(), "slow-loading"))
    await supervisor.start()
    reloading = asyncio.create_task(supervisor.reload(manifest(a, fake("new", free_port())), ("a", "new")))
    await watcher.until(events.ServerStopping, "a")
    await supervisor.stop_all("test")
    with pytest.raises(SuperviseError, match="is stopping"):
        await reloading
    with pytest.raises(SuperviseError, match="is stopping"):
        await supervisor.reload(manifest(a), ("a",))
    assert {p.state for p in supervisor.status().processes} == {"stopped"}
    assert len(watcher.of(events.ServerStarting)) == 1


def test_stop_meets_a_start_at_any_moment(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """As soon as the lock is held everything can be stopped; who started it is told that, and nothing runs."""
    directory = deploy(fake("a", free_port(), "hang-loading"))
    codes: list[str] = []

    def up() -> None:
        """A detached start; how it ended."""
        try:
            spawn_detached(directory)
        except SuperviseError as error:
            codes.append(error.findings[0].code)

    starting = threading.Thread(target=up)
    starting.start()
    wait_until(lambda: runtime_holder(state_dir))
    end_runtime(state_dir, wait_s=20, report=lambda _: None)
    starting.join(20)
    assert codes == ["supervise/stopped-early"]
    assert (offline_status(state_dir).processes, runtime_holder(state_dir)) == ((), None)


HOLDER = """
import fcntl, os, sys, time
from launcher.base.procfs import birth
from launcher.base.locks import LockOwner
from launcher.files.state import OwnedLock
from pathlib import Path
OwnedLock(Path(sys.argv[1])).acquire(LockOwner(**birth(os.getpid())))
print(flush=True)
time.sleep(600)
"""


def test_a_runtime_that_takes_no_connection_holds_no_command_up(state_dir: Path) -> None:
    """It is stuck, and as many have asked it as may wait: who comes now is told so at once."""
    waiting: list[socket.socket] = []
    with control_socket(state_dir) as stuck, contextlib.ExitStack() as stack:
        stuck.listen(0)
        while not waiting or waiting[-1].fileno() >= 0:
            waiting.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(str(state_dir / SOCKET_NAME))
            except BlockingIOError:
                waiting[-1].close()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ControlClient, state_dir)
            try:
                with pytest.raises(NoRuntimeError):
                    asked.result(timeout=20)
            finally:
                stuck.close()  # whoever hangs there still is refused


def test_a_holder_that_never_listens_gets_sigterm(state_dir: Path, no_orphans: None) -> None:
    """Whom the lock names truly is signalled after a while without a control socket; the wait is told."""
    said: list[str] = []
    with killed_on_failure(
        subprocess.Popen([sys.executable, "-c", HOLDER, str(state_dir / LOCK_NAME)], stdout=subprocess.PIPE)
    ) as held:
        assert held.stdout is not None
        held.stdout.readline()
        end_runtime(state_dir, wait_s=20, report=said.append)
        assert held.wait(10) == -15
    assert any("SIGTERM" in line and str(held.pid) in line for line in said)


@pytest.mark.parametrize("text", [b"", b"{", b'{"pid":"x"}', b'{"pid":1,"start_ticks":1,"boot_id":"b"}', b"\xff"])
def test_a_lock_without_a_true_name(state_dir: Path, text: bytes) -> None:
    """It is held, by nobody knows whom: status says 0, and stop refuses to signal anybody."""
    lock = state_dir / LOCK_NAME
    lock.write_bytes(text)
    with lock.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert offline_status(state_dir).runtime_pid == 0
        if text == b"":
            with pytest.raises(SuperviseError, match="does not name"):
                end_runtime(state_dir, wait_s=20, report=lambda _: None)
    assert offline_status(state_dir).runtime_pid is None


def test_a_reload_during_the_start_is_refused(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """It says what still starts, whether the doors are open yet or not; the start goes on undisturbed."""
    directory = deploy(fake("slow", free_port(), "slow-loading"))
    starting = threading.Thread(target=spawn_detached, args=(directory,))
    starting.start()
    wait_until(lambda: runtime_holder(state_dir))
    with reach_runtime(state_dir) as client:
        with pytest.raises(SuperviseError, match="still starting: slow") as caught:
            client.reload()
        assert caught.value.findings[0].code == "supervise/starting"
        starting.join(20)
        assert client.reload()["kept"] == ["slow"]
