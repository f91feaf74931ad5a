"""A terminal that nobody reads (^S, a pager, a stalled ssh) stops no request and no command."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from launcher.base.background import Background, BackgroundHandler
from launcher.manifest import decode_routes, encode_document
from launcher.runtime import ControlClient, NoRuntimeError
from tests.supervise.conftest import fake, manifest, write_deployment_dir
from tests.supervise.test_runtime import wait_until

FreePort = Callable[[], int]


def full_pipe() -> tuple[int, int]:
    """A pipe that takes not one byte more."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 512)
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.parametrize("access_log", [True])
def test_nobody_reads_the_terminal(
    tmp_path: Path, state_dir: Path, free_port: FreePort, no_orphans: None, *, access_log: bool
) -> None:
    """H17: events, access log and warnings go to a full pipe: /health, completions and stop answer all the same."""
    front = free_port()
    directory = write_deployment_dir(tmp_path / "d", manifest(fake("one", free_port())), front)
    table = decode_routes((directory / "routes.json").read_bytes())
    unit = msgspec.structs.replace(table.front, access_log=access_log)
    (directory / "routes.json").write_bytes(encode_document(msgspec.structs.replace(table, front=unit)))
    reading, writing = full_pipe()
    with contextlib.ExitStack() as ends:
        ends.callback(os.close, reading)
        argv = [sys.executable, "-m", "launcher.runtime", str(directory)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as people run it
        runtime = subprocess.Popen(argv, stderr=writing, start_new_session=True, env=env)
        ends.callback(runtime.kill)
        os.close(writing)

        def ready() -> bool:
            with contextlib.suppress(NoRuntimeError, httpx.HTTPError), ControlClient(state_dir) as client:
                return client.status().ready
            return False

        wait_until(ready)
        for _ in range(3):
            body = {"model": "one", "prompt": "a"}
            assert httpx.post(f"http://127.0.0.1:{front}/completion", json=body, timeout=10).status_code == 200
        shutil.rmtree(state_dir)  # a warning, before its doors are there again
        wait_until(ready)
        assert httpx.get(f"http://127.0.0.1:{front}/health", timeout=10).status_code == 200
        with ControlClient(state_dir) as client:
            client.stop(wait_s=30)
        assert runtime.wait(10) == 0


def test_calls_in_order_and_dropped_where_too_many_wait(caplog: pytest.LogCaptureFixture) -> None:
    """What raises is logged and ends nothing; what blocks holds up who asks for no longer than he says."""
    background, made, blocked, go_on = Background(), [], threading.Event(), threading.Event()
    assert background.close(0)
    background.put(lambda: 1 / 0)
    background.put(lambda: (blocked.set(), go_on.wait()))
    assert blocked.wait(10)  # else the thread would begin while the queue is full, and leave room
    for number in range(20_000):
        background.put(lambda number=number: made.append(number))  # type: ignore[misc]
    assert not background.close(0.01)
    go_on.set()
    assert background.close(10)
    assert made == list(range(10_000))
    assert "ZeroDivisionError" in caplog.text


def test_log_lines_are_written_beside(capfd: pytest.CaptureFixture[str]) -> None:
    """The handler's line comes, with its arguments as they were."""
    logger = logging.getLogger("beside")
    handler = BackgroundHandler()
    logger.addHandler(handler)
    logger.warning("%s", "said")
    logger.removeHandler(handler)
    handler.close()
    assert "said" in capfd.readouterr().err
