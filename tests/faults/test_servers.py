"""A server is killed, stopped, crashes, or never comes up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.supervise import events
from tests.supervise.conftest import fake, real

FreePort = Callable[[], int]
Tiny = Callable[..., Path]


def oom_score_adj(pid: int) -> int:
    """What the kernel has for `pid`."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_killed_while_idle(sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny) -> None:
    """Kill -9 of an idle server → noticed at once, restarted after a pause, counted; the next request is answered."""
    async with sites(real("one", free_port(), llama_server, tiny_models("llama"))) as site:
        os.kill(site.pid("one"), signal.SIGKILL)
        failed = await site.watcher.until(events.ServerFailed)
        assert (failed.code, failed.final) == ("supervise/killed", False)
        assert await site.ask("one") == (200, "")
        assert site.status("one").restarts == 1


async def test_killed_while_loading(sites: Any, free_port: FreePort) -> None:
    """Kill -9 of a server that still loads → FAILED, not repeated; who waits for it gets a typed 503."""
    async with sites(fake("one", free_port(), "hang-loading", start="demand")) as site:
        asked = asyncio.create_task(site.ask("one"))
        starting = await site.watcher.until(events.ServerStarting)
        os.kill(starting.pid, signal.SIGKILL)
        assert await asked == (503, "server_failed")
        assert site.status("one").state == "failed"
        assert len(site.watcher.of(events.ServerStarting)) == 1


async def test_killed_while_streaming(sites: Any, free_port: FreePort, llama_server: Path, smollm2: Path) -> None:
    """Kill -9 of a server that streams → the stream ends with an error event, never cleanly; the next is answered."""
    async with sites(real("one", free_port(), llama_server, smollm2)) as site:
        began = asyncio.Event()
        streaming = asyncio.create_task(site.stream("one", began, n_predict=400))
        await began.wait()
        os.kill(site.pid("one"), signal.SIGKILL)
        assert await streaming == "error"
        # A killed process closes its sockets one by one: until it is gone, the next request may still reach it.
        await site.watcher.until(events.ServerFailed)
        assert await site.ask("one") == (200, "")


async def test_stopped_while_idle(sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny) -> None:
    """SIGSTOP of an idle server → within a second requests wait or go elsewhere; after 3 s it is restarted."""
    async with sites(real("one", free_port(), llama_server, tiny_models("llama"))) as site:
        stopped = site.pid("one")
        os.kill(stopped, signal.SIGSTOP)
        await site.until(lambda: site.supervisor.state("one") != "ready")
        assert "stopped by a signal" in site.status("one").error
        assert await site.ask("one") == (200, "")
        assert site.pid("one") != stopped
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/suspended"


async def test_stopped_and_continued(sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny) -> None:
    """SIGSTOP, and SIGCONT within 3 s → no restart; who asked meanwhile is answered by the same process."""
    async with sites(real("one", free_port(), llama_server, tiny_models("llama"))) as site:
        pid = site.pid("one")
        os.kill(pid, signal.SIGSTOP)
        await site.until(lambda: site.supervisor.state("one") != "ready")
        asked = asyncio.create_task(site.ask("one"))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
        assert await asked == (200, "")
        assert site.pid("one") == pid


async def test_stopped_while_loading(sites: Any, free_port: FreePort) -> None:
    """SIGSTOP of a server that still loads → stalled after `stall_timeout_s`, FAILED, its process gone."""
    async with sites(fake("one", free_port(), "hang-loading", start="demand", stall_timeout_s=1)) as site:
        asked = asyncio.create_task(site.ask("one"))
        starting = await site.watcher.until(events.ServerStarting)
        os.kill(starting.pid, signal.SIGSTOP)
        assert await asked == (503, "server_failed")
        assert "stalled" in site.status("one").error
        assert not psutil.pid_exists(starting.pid)


async def test_stopped_while_streaming(sites: Any, free_port: FreePort, llama_server: Path, smollm2: Path) -> None:
    """SIGSTOP of a server that streams → the stream ends with an error event seconds later; the next is answered."""
    async with sites(real("one", free_port(), llama_server, smollm2, stop_grace_s=0.2)) as site:
        began = asyncio.Event()
        streaming = asyncio.create_task(site.stream("one", began, n_predict=400))
        await began.wait()
        os.kill(site.pid("one"), signal.SIGSTOP)
        assert await streaming == "error"
        assert await site.ask("one") == (200, "")


async def test_exit_code_1(sites: Any, free_port: FreePort) -> None:
    """Exit code 1 at the start → FAILED with the flag that its log names; a typed 503; its neighbour serves."""
    bad = fake("bad", free_port(), "exit-1", fatal=False)
    async with sites(bad, fake("good", free_port())) as site:
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/unknown-flag"
        assert await site.ask("bad") == (503, "server_failed")
        assert await site.ask("good") == (200, "")


async def test_exit_without_a_word(sites: Any, free_port: FreePort, tmp_path: Path) -> None:
    """Exit code 1 whose last log lines are lost (llama-server's logger is a thread) → started again to learn why."""
    mute = fake("mute", free_port(), "mute-once", note=str(tmp_path / "seen"), fatal=False)
    async with sites(mute, fake("good", free_port())) as site:
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/unknown-flag"
        assert len(site.watcher.of(events.ServerStarting, "mute")) == 2


async def test_exit_code_134(sites: Any, free_port: FreePort) -> None:
    """Exit code 134 at the start (an assertion of ggml) → FAILED with the assertion from the log."""
    async with sites(fake("bad", free_port(), "exit-134"), fails=True) as site:
        failed = site.watcher.of(events.ServerFailed)[0]
        assert failed.code == "supervise/assertion"
        assert "GGML_ASSERT(n > 0)" in failed.cause


async def test_aborted_while_serving(sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny) -> None:
    """SIGABRT while serving → the restart names the abort; the next request is answered."""
    async with sites(real("one", free_port(), llama_server, tiny_models("llama"))) as site:
        os.kill(site.pid("one"), signal.SIGABRT)
        failed = await site.watcher.until(events.ServerFailed)
        assert failed.code in {"supervise/aborted", "supervise/assertion"}
        assert await site.ask("one") == (200, "")


async def test_out_of_memory(sites: Any, free_port: FreePort) -> None:
    """OOM kill: SIGKILL after the message of a failed allocation → FAILED as out of memory, with what would help."""
    async with sites(fake("big", free_port(), "out-of-memory"), fails=True) as site:
        failed = site.watcher.of(events.ServerFailed)[0]
        assert failed.code == "supervise/out-of-memory"
        assert "smaller quantization" in failed.remedy


async def test_crash_loop(sites: Any, free_port: FreePort) -> None:
    """A crash after every start → given up after three, then a typed 503 at once; its neighbour serves."""
    async with sites(fake("loop", free_port(), "die-after-ready"), fake("good", free_port())) as site:
        await site.watcher.until(events.ServerFailed, "loop", 3)
        assert await site.ask("loop") == (503, "server_failed")
        assert await site.ask("good") == (200, "")


async def test_deaf(sites: Any, free_port: FreePort) -> None:
    """A server that lives and answers /health no more → ended and restarted."""
    async with sites(fake("deaf", free_port(), "deaf", "ignore-term", stop_grace_s=0.2)) as site:
        failed = await site.watcher.until(events.ServerFailed)
        assert failed.code == "supervise/unhealthy"
        await site.watcher.until(events.ServerReady, count=2)


async def test_slow_loader(sites: Any, free_port: FreePort) -> None:
    """A loader slower than `stall_timeout_s` that keeps logging → waited for, READY."""
    async with sites(fake("slow", free_port(), "long-loading", stall_timeout_s=1.5)) as site:
        assert site.status("slow").state == "ready"
        assert await site.ask("slow") == (200, "")


async def test_loader_that_hangs(sites: Any, free_port: FreePort) -> None:
    """A loader that hangs without a word → stalled after `stall_timeout_s`, FAILED, nothing left of it."""
    async with sites(fake("hangs", free_port(), "hang-loading", stall_timeout_s=0.4), fails=True) as site:
        failed = site.watcher.of(events.ServerFailed)[0]
        assert failed.code == "supervise/stalled"
        assert site.status("hangs").pid is None


async def test_no_token(sites: Any, free_port: FreePort) -> None:
    """Healthy, but no token comes out → not READY: FAILED after `start_timeout_s`."""
    async with sites(fake("dumb", free_port(), "no-token", start_timeout_s=1), fails=True) as site:
        assert site.watcher.of(events.ServerFailed)[0].code == "supervise/not-ready"
        assert site.watcher.of(events.ServerReady) == []


async def test_ignores_sigterm(sites: Any, free_port: FreePort) -> None:
    """A server and its child that ignore SIGTERM → SIGKILL to the whole session after the grace."""
    async with sites(fake("stubborn", free_port(), "ignore-term", "grandchild", stop_grace_s=0.2)) as site:
        server = psutil.Process(site.pid("stubborn"))
        family = [server, *server.children()]
        await site.supervisor.stop(("stubborn",))
        assert len(family) == 2
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("adjust", [300, -1000])
async def test_oom_score(sites: Any, free_port: FreePort, adjust: int) -> None:
    """Memory runs out on the host → the kernel prefers what its tier's `oom_score_adjust` says (lower: root only)."""
    async with sites(fake("one", free_port(), oom_score_adjust=adjust)) as site:
        set_to, ours = oom_score_adj(site.pid("one")), oom_score_adj(os.getpid())
        assert set_to == adjust or (adjust < 0 and set_to == ours)
