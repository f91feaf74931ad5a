"""The supervisor with fake and real servers: start, faults, restarts, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from launcher.base import procfs
from launcher.errors import SuperviseError
from launcher.supervise import events
from tests.supervise.conftest import FAKE, SUPERVISOR, becomes, fake, real, wake

FreePort = Callable[[], int]


def run_fake(port: int) -> subprocess.Popen[bytes]:
    """A fake server that nobody supervises."""
    return subprocess.Popen([sys.executable, "-S", str(FAKE), "--port", str(port), "--model", "/models/one.gguf"])


def by_name(supervisor: Any, name: str) -> Any:
    """The status of one process."""
    return next(p for p in supervisor.status().processes if p.name == name)


async def test_a_real_server_becomes_ready_and_stops(
    fleet: Any, free_port: FreePort, llama_server: Path, smollm2: Path
) -> None:
    """SmolLM2: proven ready, shown with its memory, gone after stop."""
    supervisor, watcher = fleet(real("small", free_port(), llama_server, smollm2))
    await supervisor.start()
    status = by_name(supervisor, "small")
    assert (status.state, status.drift, status.error) == ("ready", "", None)
    assert status.measured_bytes["ram"] > 100 * 1024**2
    assert supervisor.status().ready
    pid = status.pid
    await supervisor.stop_all("test")
    assert not psutil.pid_exists(pid)
    assert [type(e).__name__ for e in watcher.events] == [
        "ServerStarting",
        "ServerReady",
        "FleetReady",
        "Stopping",
        "ServerStopping",
        "ServerStopped",
        "Stopped",
    ]


async def test_every_probe_proves_a_real_server(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """Completion, embedding and rerank each have their token."""
    tiny, bert = tiny_models("llama"), tiny_models("bert")
    supervisor, _ = fleet(
        real("text", free_port(), llama_server, tiny),
        real("vector", free_port(), llama_server, bert, "--embedding", "--pooling", "cls", probe="embedding"),
        real("raw", free_port(), llama_server, tiny, "--embedding", "--pooling", "none", probe="embedding"),
    )
    await supervisor.start()
    assert supervisor.status().ready


async def test_a_broken_model_is_an_error_with_the_end_of_its_log(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """The cause in words, the log in the notes, and everything that was started is stopped."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_models("llama").read_bytes()[:-100])
    for _ in range(5):  # the real server may lose its last lines as it exits: then once more
        supervisor, _ = fleet(
            fake("good", free_port()), real("bad", free_port(), llama_server, broken, after=("good",))
        )
        with pytest.raises(SuperviseError) as caught:
            await supervisor.start()
        (finding,) = caught.value.findings
        if finding.code != "supervise/exited":
            break
    assert (finding.code, finding.key) == ("supervise/model-truncated", "servers.bad")
    assert any("not within the file bounds" in note for note in finding.notes)
    assert {p.state for p in supervisor.status().processes} == {"stopped"}


async def test_a_slow_start_that_gets_on_is_waited_for(fleet: Any, free_port: FreePort) -> None:
    """Longer than its `start_timeout_s`: said once, shown with what is left, and ready in the end."""
    slow = fake("slow", free_port(), "long-loading", start_timeout_s=1, stall_timeout_s=4, load_s=0.5)
    supervisor, watcher = fleet(slow)
    starting = asyncio.create_task(supervisor.start())
    said = await watcher.until(events.ServerSlow)
    shown = by_name(supervisor, "slow")
    assert (said.name, said.expected_s, said.seconds >= 1) == ("slow", 0.5, True)
    assert shown.starting_s is not None
    assert shown.left_s is not None
    await starting
    assert supervisor.state("slow") == "ready"
    assert len(watcher.of(events.ServerSlow)) == 1
    assert by_name(supervisor, "slow").starting_s is None


@pytest.mark.parametrize(
    ("faults", "changes", "expected"),
    [
        (("exit-1",), {}, ("supervise/unknown-flag", "--nonsense")),
        (("exit-134",), {}, ("supervise/assertion", "GGML_ASSERT(n > 0)")),
        (("hang-loading",), {"stall_timeout_s": 0.3}, ("supervise/stalled", "stalled")),
        (("hang-loading",), {"start_timeout_s": 0.4}, ("supervise/not-ready", "not ready after 0.4 s")),
        (("no-token",), {"start_timeout_s": 0.6}, ("supervise/not-ready", "not ready after 0.6 s")),
        (("wrong-model",), {}, ("supervise/unfit", "/other.gguf")),
        ((), {"slots": 7}, ("supervise/unfit", "planned are 7")),
        ((), {"files": ("/no/such.gguf",)}, ("supervise/model-missing", "/no/such.gguf")),
        ((), {"argv": ("/no/such/llama-server",)}, ("supervise/binary-missing", "/no/such/llama-server")),
        ((), {"argv": (str(FAKE), "--port")}, ("supervise/binary-missing", "not executable")),
        (
            ("hang-loading", "ignore-term"),
            {"start_timeout_s": 0.4, "stop_grace_s": 0.2},
            ("supervise/not-ready", "0.4"),
        ),
    ],
)
async def test_a_server_that_does_not_become_ready_is_named_with_its_cause(
    fleet: Any, free_port: FreePort, faults: tuple[str, ...], changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    """Every way of not becoming ready gives its code and says what happened."""
    supervisor, _ = fleet(fake("one", free_port(), *faults, **changes))
    with pytest.raises(SuperviseError) as caught:
        await supervisor.start()
    assert caught.value.findings[0].code == expected[0]
    assert expected[1] in caught.value.findings[0].message


async def test_a_file_that_is_no_program_is_named(fleet: Any, free_port: FreePort, tmp_path: Path) -> None:
    """It may be executed, and the kernel does not know how."""
    program = tmp_path / "llama-server"
    program.write_bytes(b"\0\0\0\0")
    program.chmod(0o755)
    supervisor, _ = fleet(fake("one", free_port(), argv=(str(program),)))
    with pytest.raises(SuperviseError) as caught:
        await supervisor.start()
    assert caught.value.findings[0].code == "supervise/cannot-execute"
    assert "Exec format error" in caught.value.findings[0].message


async def test_a_word_that_no_command_line_can_hold(fleet: Any, free_port: FreePort) -> None:
    """A NUL in a manifest that somebody wrote."""
    supervisor, _ = fleet(fake("one", free_port(), argv=("/bin/true", "--alias", "a\0b")))
    with pytest.raises(SuperviseError) as caught:
        await supervisor.start()
    assert caught.value.findings[0].code == "supervise/cannot-execute"
    assert "null byte" in caught.value.findings[0].message


async def test_a_failure_that_is_not_fatal_leaves_the_rest_running(fleet: Any, free_port: FreePort) -> None:
    """The fleet is ready, and says what failed."""
    supervisor, watcher = fleet(fake("bad", free_port(), "exit-1", fatal=False), fake("good", free_port()))
    await supervisor.start()
    ready = await watcher.until(events.FleetReady)
    assert (ready.ready, ready.failed) == (("good",), ("bad",))
    assert by_name(supervisor, "bad").state == "failed"
    assert by_name(supervisor, "bad").log_tail


async def test_a_fleet_of_which_no_server_starts_has_failed(fleet: Any, free_port: FreePort) -> None:
    """Each failure alone is harmless; together they leave nothing to serve, and every one is told."""
    bad = [fake(name, free_port(), "exit-1", fatal=False) for name in ("one", "two")]
    supervisor, _ = fleet(*bad)
    with pytest.raises(SuperviseError) as caught:
        await supervisor.start()
    assert sorted(f.message.partition(":")[0] for f in caught.value.findings) == ["one", "two"]
    later, _ = fleet(bad[0], fake("later", free_port(), start="demand", fatal=False))
    await later.start()
    assert by_name(later, "one").state == "failed"


async def test_after_edges_order_the_start(fleet: Any, free_port: FreePort) -> None:
    """A server starts only when what it comes after is ready; the others at once."""
    supervisor, watcher = fleet(
        fake("a", free_port(), "slow-loading"), fake("b", free_port(), after=("a",)), fake("c", free_port())
    )
    await supervisor.start()
    names = [(type(e).__name__, e.name) for e in watcher.events if hasattr(e, "name")]
    assert names.index(("ServerReady", "a")) < names.index(("ServerStarting", "b"))
    assert names.index(("ServerStarting", "c")) < names.index(("ServerReady", "a"))


async def test_parallel_starts_are_limited(fleet: Any, free_port: FreePort) -> None:
    """With one start at a time, the second begins after the first is ready."""
    one = msgspec.structs.replace(SUPERVISOR, max_parallel_starts=1)
    supervisor, watcher = fleet(*(fake(n, free_port()) for n in "abc"), supervisor=one)
    await supervisor.start()
    kinds = [type(e).__name__ for e in watcher.events if hasattr(e, "name")]
    assert kinds == ["ServerStarting", "ServerReady"] * 3


async def test_a_killed_server_is_restarted(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """Kill -9 while idle: noticed, BACKOFF, ready again, and counted in status."""
    supervisor, watcher = fleet(real("one", free_port(), llama_server, tiny_models("llama")))
    await supervisor.start()
    os.kill(by_name(supervisor, "one").pid, signal.SIGKILL)
    failed = await watcher.until(events.ServerFailed)
    assert (failed.code, failed.final, failed.exit_code) == ("supervise/killed", False, -9)
    await watcher.until(events.ServerReady, count=2)
    assert (by_name(supervisor, "one").state, by_name(supervisor, "one").restarts) == ("ready", 1)


@pytest.mark.parametrize(
    ("end", "code", "from_outside"),
    [(signal.SIGKILL, -9, True), (signal.SIGTERM, 0, True), (signal.SIGSEGV, -11, False), (signal.SIGABRT, -6, False)],
)
async def test_who_ended_a_server(
    fleet: Any, free_port: FreePort, end: signal.Signals, code: int, from_outside: bool
) -> None:
    """A crash may be a request's doing; a signal that is sent is not, nor an end that nobody has told of yet."""
    patient = msgspec.structs.replace(SUPERVISOR, backoff_s=60, backoff_max_s=60)  # nothing starts meanwhile
    supervisor, watcher = fleet(fake("one", free_port()), supervisor=patient)
    await supervisor.start()
    os.kill(by_name(supervisor, "one").pid, end)
    assert supervisor.ended_from_outside("one")
    assert (await watcher.until(events.ServerFailed)).exit_code == code
    assert supervisor.ended_from_outside("one") is from_outside


async def test_a_crash_loop_ends_in_failed(fleet: Any, free_port: FreePort) -> None:
    """Three crashes in a row: given up, and said so; the fleet goes on."""
    supervisor, watcher = fleet(fake("loop", free_port(), "die-after-ready"), fake("good", free_port()))
    await supervisor.start()
    last = await watcher.until(events.ServerFailed, count=3)
    assert last.final
    assert "given up" in last.cause
    assert (by_name(supervisor, "loop").state, by_name(supervisor, "good").state) == ("failed", "ready")


async def test_a_deaf_server_is_restarted(fleet: Any, free_port: FreePort) -> None:
    """A server that lives and no longer answers /health is ended and started again."""
    supervisor, watcher = fleet(fake("deaf", free_port(), "deaf", "ignore-term", stop_grace_s=0.2))
    await supervisor.start()
    failed = await watcher.until(events.ServerFailed)
    assert failed.code == "supervise/unhealthy"
    await watcher.until(events.ServerReady, count=2)


async def test_a_port_in_use_names_its_owner_and_spares_it(fleet: Any, free_port: FreePort) -> None:
    """Another process holds the port: FAILED, naming it, and it lives on."""
    port = free_port()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        supervisor, _ = fleet(fake("one", port))
        with pytest.raises(SuperviseError, match=rf"port {port} is held by .*\(pid {os.getpid()}\)"):
            await supervisor.start()


async def test_a_stranger_that_answers_health_is_not_taken_for_ours(fleet: Any, free_port: FreePort) -> None:
    """It took the port between our look and our server's bind; with the same model; still not ours."""
    port = free_port()
    supervisor, watcher = fleet(fake("one", port, argv=(sys.executable, "-S", "-c", "import time; time.sleep(60)")))
    starting = asyncio.create_task(supervisor.start())
    await watcher.until(events.ServerStarting)
    stranger = run_fake(port)
    try:
        with pytest.raises(SuperviseError, match=rf"answered by .*\(pid {stranger.pid}\)") as caught:
            await starting
        assert caught.value.findings[0].code == "supervise/unfit"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_port_stolen_before_a_restart_ends_in_failed(fleet: Any, free_port: FreePort) -> None:
    """Restarts meet a stranger on the port: attempts are bounded, the stranger is named and lives."""
    port = free_port()
    supervisor, watcher = fleet(fake("one", port))
    await supervisor.start()
    os.kill(by_name(supervisor, "one").pid, signal.SIGKILL)
    await watcher.until(events.ServerFailed)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        last = await watcher.until(events.ServerFailed, count=3)
    assert (last.code, last.final) == ("supervise/port-busy", True)
    assert f"pid {os.getpid()}" in last.cause


async def test_stop_ends_what_ignores_sigterm_and_what_it_forked(fleet: Any, free_port: FreePort) -> None:
    """SIGKILL after the grace, for the whole session; a grandchild goes too."""
    supervisor, _ = fleet(fake("stubborn", free_port(), "ignore-term", "grandchild", stop_grace_s=0.3))
    await supervisor.start()
    pid = by_name(supervisor, "stubborn").pid
    family = [pid, *(c.pid for c in psutil.Process(pid).children())]
    assert len(family) == 2
    await supervisor.stop_all("test")
    assert not [p for p in family if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


async def test_a_grandchild_does_not_outlive_a_crash(fleet: Any, free_port: FreePort) -> None:
    """When a server dies, what it forked is ended before the restart."""
    supervisor, watcher = fleet(fake("parent", free_port(), "grandchild"))
    await supervisor.start()
    pid = by_name(supervisor, "parent").pid
    (child,) = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    await watcher.until(events.ServerReady, count=2)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_stop_under_load_leaves_no_process(
    fleet: Any, free_port: FreePort, llama_server: Path, smollm2: Path
) -> None:
    """Requests are running in a real server when everything is stopped."""
    from launcher.supervise import http

    port = free_port()
    supervisor, _ = fleet(real("small", port, llama_server, smollm2, stop_grace_s=0.5))
    await supervisor.start()
    pid = by_name(supervisor, "small").pid
    body = {"prompt": "Tell me a story", "n_predict": 400, "ignore_eos": True}
    asked = [
        asyncio.create_task(http.request("127.0.0.1", port, "/completion", body=body, timeout_s=30)) for _ in range(3)
    ]
    await asyncio.sleep(0.2)
    await supervisor.stop_all("test")
    assert not psutil.pid_exists(pid)
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_flooded_log_is_rotated_and_bounded(fleet: Any, free_port: FreePort, state_dir: Path) -> None:
    """A log above its limit is cut while the server runs; old files are bounded in number and size."""
    from launcher.supervise import http

    port = free_port()
    supervisor, _ = fleet(fake("loud", port, "flood-log"))
    await supervisor.start()
    for _ in range(5):
        await http.request("127.0.0.1", port, "/completion", body={}, timeout_s=10)
    log = state_dir / "logs/loud.log"
    async with asyncio.timeout(10):
        while log.stat().st_size > 1024**2:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.05)
    files = sorted((state_dir / "logs").glob("loud.log*"))
    assert len(files) <= 3
    assert all(f.stat().st_size <= 1024**2 for f in files)


async def test_a_log_that_floods_before_it_is_ready_is_cut(fleet: Any, free_port: FreePort, state_dir: Path) -> None:
    """The server still loads when its log is back below its limit."""
    supervisor, _ = fleet(fake("loud", free_port(), "flood-log", "hang-loading"))
    starting = asyncio.create_task(supervisor.start())
    log, old = state_dir / "logs/loud.log", state_dir / "logs/loud.log.1"
    async with asyncio.timeout(60):
        while not old.exists() or log.stat().st_size > 1024**2:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.05)
    assert supervisor.state("loud") == "starting"
    starting.cancel()
    await supervisor.stop_all("test")


async def test_stop_of_one_server_is_kept_until_reload(fleet: Any, free_port: FreePort) -> None:
    """An operator's stop holds against requests; an unknown name is a KeyError."""
    from launcher.ir.live import UnavailableError

    supervisor, _ = fleet(fake("a", free_port()), fake("b", free_port()))
    await supervisor.start()
    with pytest.raises(KeyError, match="nobody"):
        await supervisor.stop(("nobody",))
    await supervisor.stop(("a",))
    assert (supervisor.state("a"), supervisor.state("b")) == ("stopped", "ready")
    with pytest.raises(UnavailableError) as caught:
        await supervisor.acquire("a", 1)
    assert caught.value.code == "server_stopped"


async def test_stop_during_start_ends_everything(fleet: Any, free_port: FreePort) -> None:
    """A start that is cancelled half-way leaves no process after stop_all."""
    supervisor, watcher = fleet(fake("a", free_port()), fake("b", free_port(), "hang-loading"))
    starting = asyncio.create_task(supervisor.start())
    await watcher.until(events.ServerReady, "a")
    starting.cancel()
    await supervisor.stop_all("SIGTERM")
    await asyncio.gather(starting, return_exceptions=True)
    assert {p.state for p in supervisor.status().processes} == {"stopped"}


async def test_upkeep_goes_on_after_a_look_that_could_not_be_taken(
    fleet: Any, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left for a while: whatever looks at the fleet looks again when there is one."""
    supervisor, _ = fleet(
        fake("alpha", free_port()),
        fake("idle", free_port(), start="demand", idle_timeout_s=0.3),
        fake("turn", free_port(), start="demand", exclusive="device"),
    )
    failing = {"is_suspended", "pids", "rivals"}
    tried: set[str] = set()

    def failing_first(name: str, works: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*words: Any) -> Any:
            if name in failing:
                tried.add(name)
                raise OSError(24, "Too many open files")
            return works(*words)

        return ask

    monkeypatch.setattr("launcher.supervise.upkeep._MEASURE_S", 0.05)
    await supervisor.start()
    monkeypatch.setattr(procfs, "is_suspended", failing_first("is_suspended", procfs.is_suspended))
    monkeypatch.setattr(procfs, "pids", failing_first("pids", procfs.pids))
    monkeypatch.setattr(supervisor._upkeep, "fill_groups", failing_first("rivals", supervisor._upkeep.fill_groups))
    async with asyncio.timeout(20):
        while tried != failing:  # noqa: ASYNC110 - of loops, which tell nobody
            await asyncio.sleep(0.02)
    failing.clear()
    await wake(supervisor, "idle")
    pid = supervisor._runners["alpha"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await becomes(supervisor, "alpha", "backoff")
        await becomes(supervisor, "idle", "stopped")
    finally:
        os.kill(pid, signal.SIGCONT)
    await becomes(supervisor, "alpha", "ready")
    assert all(not task.done() for task in supervisor._upkeep.tasks)
