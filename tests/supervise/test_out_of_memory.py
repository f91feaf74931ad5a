"""Out of memory, at start and in a request: down the ladder to a rung that serves, and the client never asks twice."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from launcher import route
from launcher.base.cgroups import oom_kills
from launcher.ir.fleet import ServerUnit
from launcher.ir.live import UnavailableError
from launcher.supervise import Supervisor, events
from launcher.supervise.diagnosis import diagnose
from launcher.supervise.fallbacks import Fallbacks
from launcher.supervise.recovery import restore_if_free
from launcher.supervise.spec import process_specs
from tests.supervise.conftest import SUPERVISOR, fake, real, routes, rung

FreePort = Callable[[], int]


def laddered(name: str, port: int, *steps: tuple[str, ...], **changes: Any) -> ServerUnit:
    """A fake server: the faults as planned, then those of each rung."""
    rungs = tuple(rung(f"rung {n}", fake(name, port, *faults)) for n, faults in enumerate(steps[1:], 1))
    return fake(name, port, *steps[0], rungs=rungs, **changes)


@contextlib.asynccontextmanager
async def front_of(supervisor: Supervisor, port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the front over `supervisor`."""
    table = routes(supervisor.manifest, port)
    front = route.Front(table, supervisor)
    told = asyncio.Event()
    sock = route.bind(front, "127.0.0.1", port)
    serving = asyncio.create_task(
        route.serve(front, host="127.0.0.1", port=port, sock=sock, shutdown=told, drain_timeout_s=1)
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    told.set()
    await serving


async def ask(client: httpx.AsyncClient, name: str, **body: Any) -> httpx.Response:
    """One completion."""
    return await client.post("/completion", json={"model": name, "prompt": "a", "n_predict": 1, **body})


def taken(watcher: Any) -> list[str]:
    """Rungs in the order they were taken."""
    return [event.rung for event in watcher.of(events.RungTaken)]


async def test_a_start_walks_down_to_a_rung_that_serves(fleet: Any, free_port: FreePort) -> None:
    """Two settings do not fit, one says so and one crashes, the third does: it is ready, `status` shows the rung."""
    unit = laddered("worker", free_port(), ("oom-at-start",), ("segv-loading",), ())
    supervisor, watcher = fleet(unit)
    await supervisor.start()
    assert supervisor.state("worker") == "ready"
    assert taken(watcher) == ["1/2: rung 1", "2/2: rung 2"]
    process = supervisor.status().processes[0]
    assert (process.rung, process.restarts, process.drift) == ("2/2: rung 2", 2, "")
    assert process.planned_bytes == {"ram": 50}


async def test_a_ladder_has_an_end(fleet: Any, free_port: FreePort) -> None:
    """Nothing fits: as many starts as there are settings, then the failure, with its cause."""
    unit = laddered("worker", free_port(), *[("oom-at-start",)] * 3, start="demand")
    supervisor, watcher = fleet(unit)
    await supervisor.start()
    with pytest.raises(UnavailableError, match="K/V cache does not fit"):
        await supervisor.acquire("worker", 20)
    assert len(watcher.of(events.ServerStarting)) == 3
    assert supervisor.state("worker") == "failed"


async def test_only_out_of_memory_goes_down(fleet: Any, free_port: FreePort) -> None:
    """A server that aborts for another reason fails as it always did."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("exit-134",), (), start="demand"))
    await supervisor.start()
    with pytest.raises(UnavailableError):
        await supervisor.acquire("worker", 20)
    assert taken(watcher) == []


@pytest.mark.parametrize("fault", ["oom-dying", "oom-lingering", "oom-living"])
async def test_the_request_succeeds_without_resending(fleet: Any, free_port: FreePort, fault: str) -> None:
    """A server dies of, or reports, out-of-memory twice: one request, one 200, two rungs, six clients alike."""
    unit = laddered("worker", free_port(), (fault,), (fault,), (), slots=2)
    unit = msgspec.structs.replace(unit, argv=(*unit.argv, "--slots", "2"), argv_digest="")
    rungs = tuple(msgspec.structs.replace(r, argv=(*r.argv, "--slots", "2"), slots=2) for r in unit.rungs)
    patient = msgspec.structs.replace(SUPERVISOR, health_interval_s=10)  # as long as it takes to write a core
    supervisor, watcher = fleet(msgspec.structs.replace(unit, rungs=rungs), supervisor=patient)
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        answers = await asyncio.gather(*(ask(client, "worker") for _ in range(6)))
        assert [a.status_code for a in answers] == [200] * 6, [a.text for a in answers]
    assert taken(watcher) == ["1/2: rung 1", "2/2: rung 2"]


async def test_a_server_may_end_before_what_was_granted_is_sent(
    fleet: Any, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is when its lease was granted; who is granted one later is not asked again for that."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("oom-dying",), ()))
    await supervisor.start()
    lease = supervisor.try_lease("worker")
    with pytest.raises(httpx.HTTPError):
        async with httpx.AsyncClient() as direct:
            await direct.post(f"http://127.0.0.1:{supervisor.status().processes[0].port}/completion", json={})
    await watcher.until(events.RungTaken, "worker")
    assert await supervisor.retry_after_oom("worker", lease.granted_at)
    lease.release(ok=False)
    later = await supervisor.acquire("worker", 20)
    monkeypatch.setattr("launcher.supervise.recovery._NOTICE_S", 0.1)
    assert not await supervisor.retry_after_oom("worker", later.granted_at)
    later.release(ok=True)
    assert taken(watcher) == ["1/1: rung 1"]


async def test_a_server_that_breaks_a_connection_and_lives_on(fleet: Any, free_port: FreePort) -> None:
    """It answers for its health meanwhile: the client is told at once that its request failed, not after seconds."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("breaks-one",), ()))
    await supervisor.start()
    loop = asyncio.get_running_loop()
    async with front_of(supervisor, free_port()) as client:
        begun = loop.time()
        assert (await ask(client, "worker")).status_code == 502
        assert loop.time() - begun < 2.5  # half of what a dying one is given
        assert (await ask(client, "worker")).status_code == 200
    assert taken(watcher) == []


async def test_a_request_that_no_rung_can_serve_is_told_so(fleet: Any, free_port: FreePort) -> None:
    """The last rung has too little memory as well: a typed error, no endless circle."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("oom-living",), ("oom-living",)))
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        answer = await ask(client, "worker")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        assert "std::bad_alloc" in answer.text
    assert taken(watcher) == ["1/1: rung 1"]


async def test_it_climbs_back_when_there_is_room(fleet: Any, free_port: FreePort) -> None:
    """After its pause, with nothing in it, and not before: then it runs as planned again, by itself."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("oom-living",), ()))
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        assert (await ask(client, "worker")).status_code == 200
    runner = supervisor._runners["worker"]
    plenty = {"ram": 10**9}
    assert not restore_if_free(runner, plenty)
    lease = supervisor.try_lease("worker")
    runner.fallbacks.degradation = msgspec.structs.replace(runner.fallbacks.degradation, restore_at=0.0)
    assert not restore_if_free(runner, plenty)
    lease.release(ok=True)
    await watcher.until(events.RungTaken, "worker", 2)
    await watcher.until(events.ServerReady, "worker", 3)
    assert supervisor.status().processes[0].rung == ""
    assert taken(watcher) == ["1/1: rung 1", ""]


async def test_somebody_may_choose_the_rung(fleet: Any, free_port: FreePort) -> None:
    """Down by hand, where nothing restores it by itself, and as planned again; beyond either end it is refused."""
    supervisor, watcher = fleet(laddered("worker", free_port(), (), ()))
    await supervisor.start()
    with pytest.raises(UnavailableError, match="runs as planned"):
        await supervisor.change_rung("worker", down=False)
    await supervisor.change_rung("worker", down=True)
    assert supervisor.status().processes[0].rung == "1/1: rung 1"
    assert supervisor.state("worker") == "ready"
    with pytest.raises(UnavailableError, match="no smaller setting"):
        await supervisor.change_rung("worker", down=True)
    runner = supervisor._runners["worker"]
    assert not restore_if_free(runner, {"ram": 10**9})
    await supervisor.stop(("worker",))
    await supervisor.change_rung("worker", down=False)
    assert (supervisor.status().processes[0].rung, supervisor.state("worker")) == ("", "stopped")
    assert taken(watcher) == ["1/1: rung 1", ""]
    assert [event.by_hand for event in watcher.of(events.RungTaken)] == [True, True]
    assert runner.fallbacks.degradation.count == 0
    with pytest.raises(KeyError):
        await supervisor.change_rung("nobody", down=True)


async def test_a_rung_is_adopted_and_kept_by_a_reload(fleet: Any, free_port: FreePort) -> None:
    """A process that runs on a rung is this server: it is adopted there, and a reload without a change keeps it."""
    unit = laddered("worker", free_port(), ("oom-at-start",), ())
    supervisor, _ = fleet(unit)
    await supervisor.start()
    changes = await supervisor.reload(supervisor.manifest, ())
    assert changes.kept == ("worker",)
    process = supervisor.status().processes[0]
    assert (process.rung, process.drift) == ("1/1: rung 1", "")
    found = Fallbacks(process_specs(supervisor.manifest)["worker"])
    assert not found.adopt(("other",))
    assert (found.adopt(unit.argv), found.label) == (True, "")
    assert (found.adopt(unit.rungs[0].argv), found.label) == (True, "1/1: rung 1")
    found.take(msgspec.structs.replace(found.planned, fallbacks=()))
    assert (found.label, found.spec.unit.argv) == ("", unit.argv)


async def test_a_real_server_short_of_memory_walks_its_ladder(
    fleet: Any, free_port: FreePort, llama_server: Path, smollm2: Path
) -> None:
    """`ulimit -v` leaves no room for a K/V cache of 65536 tokens (1.5 GB): it serves with 512."""
    port = free_port()

    def limited(n_ctx: int) -> ServerUnit:
        unit = real("worker", port, llama_server, smollm2, "-c", str(n_ctx))
        return msgspec.structs.replace(unit, argv=("prlimit", f"--as={1600 * 1024**2}", "--", *unit.argv))

    supervisor, watcher = fleet(msgspec.structs.replace(limited(65536), rungs=(rung("n_ctx 512", limited(512)),)))
    await supervisor.start()
    assert taken(watcher) == ["1/1: n_ctx 512"]
    async with front_of(supervisor, free_port()) as client:
        answer = await ask(client, "worker", prompt="Once upon a time", n_predict=4, ignore_eos=True)
        assert answer.json()["tokens_predicted"] == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_a_real_server_that_runs_out_of_memory_in_a_request(
    fleet: Any,
    free_port: FreePort,
    llama_server: Path,
    tiny_models: Callable[..., Path],
    stream: bool,
) -> None:
    """Little more once it is ready: a long prompt fails in it (`std::bad_alloc`), and the next rung answers."""
    port, model = free_port(), tiny_models("llama")
    planned = real("worker", port, llama_server, model, "-c", "8192", "-fa", "off", "-ub", "2048")
    smaller = real("worker", port, llama_server, model, "-c", "8192", "-fa", "on", "-ub", "512")
    supervisor, watcher = fleet(msgspec.structs.replace(planned, rungs=(rung("n_ubatch 512", smaller),)))
    await supervisor.start()
    pid = supervisor.status().processes[0].pid
    assert pid is not None
    size = psutil.Process(pid).memory_info().vms + 32 * 1024**2  # a thread's stack fits, 67 MB of attention do not
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    async with front_of(supervisor, free_port()) as client:
        body = {
            "model": "worker",
            "messages": [{"role": "user", "content": "a" * 5000}],
            "max_tokens": 4,
            "ignore_eos": True,
        }
        answer = await client.post("/v1/chat/completions", json={**body, "stream": stream})
        assert answer.status_code == 200
        assert '"finish_reason":"length"' in answer.text
        assert "bad_alloc" not in answer.text
        metrics = (await client.get("/metrics")).text
    assert taken(watcher) == ["1/1: n_ubatch 512"]
    assert 'launch_requests_total{server="worker",status="200"} 1' in metrics


def test_a_kill_by_the_kernel_is_told_from_one_by_somebody(tmp_path: Path) -> None:
    """SIGKILL with a risen count of out-of-memory kills is one; without, it is not. Both kinds of control group."""
    assert diagnose(-signal.SIGKILL, (), oom_killed=True).code == "supervise/oom-killed"
    assert diagnose(None, (), oom_killed=True).code == "supervise/oom-killed"
    assert diagnose(1, (), oom_killed=True).code == "supervise/exited"
    assert diagnose(-signal.SIGKILL, (), oom_killed=False).code == "supervise/killed"
    assert oom_kills(tmp_path) == 0
    for path, text in (
        ("proc/self/cgroup", "4:memory:/a/b\n0::/x\n"),
        ("proc/vmstat", "pgfault 9\noom_kill 1\n"),
        ("sys/fs/cgroup/x/memory.events", "low 0\noom 5\noom_kill 20\noom_group_kill 7\n"),
        ("sys/fs/cgroup/memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 300\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert oom_kills(tmp_path) == 321


async def test_a_stop_by_hand_in_the_middle_of_a_change_of_rung_stands(fleet: Any, free_port: FreePort) -> None:
    """While its process ends for the change somebody stops it: it is not started again."""
    supervisor, watcher = fleet(laddered("worker", free_port(), ("ignore-term",), (), stop_grace_s=0.5))
    await supervisor.start()
    changing = asyncio.create_task(supervisor.change_rung("worker", down=True))
    await watcher.until(events.ServerStopping, "worker")
    await supervisor.stop(("worker",))
    await asyncio.wait_for(changing, 20)
    assert (supervisor.state("worker"), supervisor._runners["worker"].life.held) == ("stopped", True)
