"""The host misbehaves: ports, model files, disks, logs, the clock."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.files import write_atomic
from launcher.supervise import events
from launcher.supervise.identity import RecordStore
from launcher.supervise.offline import living_records
from tests.supervise.conftest import FAKE, fake, manifest, real, write_deployment_dir

FreePort = Callable[[], int]
Tiny = Callable[..., Path]
FULL_DISK = Path(__file__).with_name("full_disk.sh")


def listener(port: int) -> socket.socket:
    """Somebody who holds `port`."""
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    thief.bind(("127.0.0.1", port))
    thief.listen()
    return thief


async def test_port_stolen_before_the_start(sites: Any, free_port: FreePort) -> None:
    """Port stolen between plan and start → FAILED, the thief named and left alone; the others serve."""
    port = free_port()
    with listener(port):
        async with sites(fake("one", port, fatal=False), fake("good", free_port())) as site:
            failed = site.watcher.of(events.ServerFailed)[0]
            assert failed.code == "supervise/port-busy"
            assert f"(pid {os.getpid()})" in failed.cause
            assert await site.ask("one") == (503, "server_failed")
            assert await site.ask("good") == (200, "")


async def test_port_stolen_before_a_restart(sites: Any, free_port: FreePort) -> None:
    """Port stolen between a crash and the restart → bounded attempts, FAILED, the thief named and left alone."""
    port = free_port()
    async with sites(fake("one", port)) as site:
        os.kill(site.pid("one"), signal.SIGKILL)
        await site.watcher.until(events.ServerFailed)
        with listener(port):
            last = await site.watcher.until(events.ServerFailed, count=3)
        assert (last.code, last.final) == ("supervise/port-busy", True)


async def test_a_stranger_answers_health(sites: Any, free_port: FreePort) -> None:
    """A stranger answers health on our port, with our model → not taken for ours: FAILED, and it lives on."""
    port = free_port()
    mute = fake("one", port, argv=(sys.executable, "-S", "-c", "import time; time.sleep(60)"), start="demand")
    async with sites(mute) as site:
        asked = asyncio.create_task(site.ask("one"))
        await site.watcher.until(events.ServerStarting)
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-S", str(FAKE), "--port", str(port), "--model", "/models/one.gguf"
        )
        try:
            assert await asked == (503, "server_failed")
            assert site.watcher.of(events.ServerFailed)[0].code == "supervise/unfit"
            assert f"(pid {stranger.pid})" in site.status("one").error
            assert stranger.returncode is None
        finally:
            stranger.kill()
            await stranger.wait()


@pytest.fixture
def model(tiny_models: Tiny, tmp_path: Path) -> Path:
    """A tiny model file of our own."""
    return Path(shutil.copy(tiny_models("llama"), tmp_path / "own.gguf"))


async def test_model_truncated_before_the_start(
    sites: Any, free_port: FreePort, llama_server: Path, model: Path
) -> None:
    """Model file truncated before the start → FAILED as truncated, though llama-server may lose its last lines."""
    os.truncate(model, os.stat(model).st_size - 100)  # noqa: PTH116 - nothing waits meanwhile
    async with sites(real("one", free_port(), llama_server, model), fails=True) as site:
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/model-truncated"


async def test_model_truncated_while_running(sites: Any, free_port: FreePort, llama_server: Path, model: Path) -> None:
    """Model file truncated while running → answers or typed errors; after the crash FAILED as truncated, not a loop."""
    async with sites(real("one", free_port(), llama_server, model)) as site:
        os.truncate(model, 4096)
        status, code = await site.ask("one")
        assert status == 200 or code
        if site.status("one").pid is not None:
            os.kill(site.pid("one"), signal.SIGKILL)
        await site.until(lambda: site.status("one").state == "failed")
        assert site.watcher.of(events.ServerFailed)[-1].code == "supervise/model-truncated"
        # the same body again: refused for the failed server, or, shortly after, as what it did not survive
        assert await site.ask("one") in ((503, "server_failed"), (422, "request_ended_server"))


async def test_model_removed_while_running(sites: Any, free_port: FreePort, llama_server: Path, model: Path) -> None:
    """Model file removed while running → it serves on; a crash ends in FAILED; put back, `reload` starts it."""
    server = real("one", free_port(), llama_server, model)
    async with sites(server) as site:
        aside = model.rename(model.with_suffix(".aside"))  # noqa: ASYNC240 - an instant
        assert await site.ask("one") == (200, "")
        os.kill(site.pid("one"), signal.SIGKILL)
        await site.until(lambda: site.status("one").state == "failed")
        assert site.watcher.of(events.ServerFailed)[-1].code == "supervise/model-missing"
        aside.rename(model)
        await site.supervisor.reload(manifest(server), ("one",))
        assert await site.ask("one") == (200, "")


async def test_model_replaced_while_running(
    sites: Any, free_port: FreePort, llama_server: Path, model: Path, tiny_models: Tiny
) -> None:
    """Model file replaced while running → it serves the old one on; a restart serves the new one."""
    async with sites(real("one", free_port(), llama_server, model)) as site:
        before = site.pid("one")
        shutil.copy(tiny_models("llama", seed=7), model.with_suffix(".new"))
        model.with_suffix(".new").replace(model)
        assert await site.ask("one") == (200, "")
        assert site.pid("one") == before
        os.kill(before, signal.SIGKILL)
        await site.watcher.until(events.ServerReady, count=2)
        assert await site.ask("one") == (200, "")


async def test_disk_full_for_logs(
    sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny, state_dir: Path
) -> None:
    """Disk full for logs → the server starts, serves and restarts; only its log is lost."""
    (state_dir / "logs/one.log").symlink_to("/dev/full")
    async with sites(real("one", free_port(), llama_server, tiny_models("llama"))) as site:
        assert await site.ask("one") == (200, "")
        os.kill(site.pid("one"), signal.SIGKILL)
        await site.watcher.until(events.ServerReady, count=2)
        assert await site.ask("one") == (200, "")


async def test_logs_that_cannot_be_made(sites: Any, free_port: FreePort, state_dir: Path) -> None:
    """The log file cannot even be made → the server runs without a log."""
    (state_dir / "logs/one.log").mkdir()
    async with sites(fake("one", free_port())) as site:
        assert await site.ask("one") == (200, "")


async def test_disk_full_for_state_while_running(sites: Any, free_port: FreePort, state_dir: Path) -> None:
    """Disk full for state while running → everything serves, the refusal is said, and made good when there is room."""
    full = False

    def write(path: Path, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, data)

    servers = fake("one", free_port()), fake("warm", free_port(), start="demand")
    async with sites(*servers, write=write) as site:
        full = True
        assert await site.ask("warm") == (200, "")
        assert await site.ask("one") == (200, "")
        (said,) = site.owner.heal()
        assert "servers/warm.json cannot be written: No space left" in said
        living, _ = living_records(RecordStore(state_dir), "test")
        assert {record.name for record in living} == {"one", "warm"}
        full = False
        assert site.owner.heal() == ()
        assert {record.pid for record in RecordStore(state_dir).read()[0]} == {r.pid for r in living}


async def test_state_that_cannot_be_removed(sites: Any, free_port: FreePort, state_dir: Path) -> None:
    """A state file that stays, then a directory of them that is gone → the dead server is started again."""
    file = state_dir / "servers/one.json"
    async with sites(fake("one", free_port())) as site:
        file.unlink()
        file.mkdir()  # unlink and rename refuse it, for root too
        first = site.pid("one")
        os.kill(first, signal.SIGKILL)
        await site.watcher.until(events.ServerReady, count=2)
        assert site.pid("one") != first
        assert await site.ask("one") == (200, "")
        assert "one.json cannot be written" in site.owner.heal()[0]
        shutil.rmtree(state_dir)
        os.kill(site.pid("one"), signal.SIGKILL)
        await site.watcher.until(events.ServerReady, count=3)
        assert await site.ask("one") == (200, "")
        living, _ = living_records(RecordStore(state_dir), "test")
        assert [record.pid for record in living] == [site.pid("one")]
        file.parent.mkdir(parents=True)
        assert site.owner.heal() == ()
        assert file.is_file()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not there")
def test_disk_full_for_state_at_the_start(tmp_path: Path, free_port: FreePort, no_orphans: None) -> None:
    """Disk full for state (a real one) at the start → exit code 6, the file named, no traceback, nothing runs."""
    directory = write_deployment_dir(tmp_path / "d", manifest(fake("one", free_port())), free_port())
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", str(FULL_DISK), sys.executable, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no private mount namespace")
    assert done.returncode == 6, done.stderr
    assert "cannot write" in done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


async def test_log_flood(sites: Any, free_port: FreePort, state_dir: Path) -> None:
    """Log flood: 1 MiB with every request → cut while it runs, old files bounded in number and size, all answered."""
    async with sites(fake("loud", free_port(), "flood-log")) as site:
        for _ in range(6):
            assert await site.ask("loud") == (200, "")
        logs = state_dir / "logs"
        await site.until(lambda: (logs / "loud.log").stat().st_size <= 1024**2)
        sizes = [f.stat().st_size for f in logs.glob("loud.log*")]
        assert len(sizes) <= 3
        assert max(sizes) <= 1024**2


async def test_clock_jump(sites: Any, free_port: FreePort, monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """Clock jumps ten years ahead and twenty back → no restart, no idle stop; its processes are still known as ours."""
    from launcher.supervise.identity import RecordStore, mismatch

    warm = fake("warm", free_port(), start="demand", idle_timeout_s=30)
    async with sites(fake("one", free_port()), warm) as site:
        assert await site.ask("warm") == (200, "")
        before = [site.pid(name) for name in ("one", "warm")]
        real_time = time.time
        for years in (10, -10):
            jump_s = years * 365 * 86400
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real_time() + jump_s)
            await asyncio.sleep(0.6)
            assert [site.pid(name) for name in ("one", "warm")] == before
            assert await site.ask("one") == (200, "")
        os.kill(before[0], signal.SIGKILL)
        await site.watcher.until(events.ServerReady, "one", 2)
        monkeypatch.setattr(time, "time", lambda: real_time() - 20 * 365 * 86400)
        records, rejected = RecordStore(state_dir).read("test")
        assert ([mismatch(r) for r in records], rejected) == ([None, None], ())


async def test_binary_missing(sites: Any, free_port: FreePort) -> None:
    """The llama-server binary is gone at a restart → FAILED with its path; a typed 503."""
    async with sites(fake("one", free_port(), argv=("/no/such/llama-server",), start="demand")) as site:
        assert await site.ask("one") == (503, "server_failed")
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/binary-missing"


async def test_no_descriptors_left(sites: Any, free_port: FreePort) -> None:
    """The runtime has no descriptor left for a start → a typed error, no unwatched process; `reload NAME` starts it."""
    import resource

    warm = fake("warm", free_port(), start="demand")
    async with sites(warm) as site:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(fd) for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
        held = [os.open(os.devnull, os.O_RDONLY)]
        while held[-1] <= used:  # no number is left below
            held.append(os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 3, hard))  # two more: enough to look, not to start
        try:
            with pytest.raises(Exception, match="server 'warm' failed"):
                await site.supervisor.acquire("warm", 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in held:
                os.close(descriptor)
        assert await site.ask("warm") == (503, "server_failed")
        await site.supervisor.reload(manifest(warm), ("warm",))
        assert await site.ask("warm") == (200, "")
