"""Servers that are jobs: submitted on demand, idle ones cancelled, turns; and what goes wrong between us and Slurm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from launcher.ir.live import UnavailableError
from launcher.supervise import events, readiness
from launcher.supervise.owner import OwnedProcess
from tests.slurm.conftest import FakeSlurm, Front, Up, job_server
from tests.supervise.conftest import wake

FreePort = Callable[[], int]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until `holds()`."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - files of other processes
            await asyncio.sleep(0.02)


async def test_on_demand_and_back(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """A request submits one job, others share it; idle it is cancelled, and nothing of it is left."""
    front = await up(job_server("alpha", free_port(), idle_timeout_s=1))
    assert (front.supervisor.state("alpha"), slurm.jobs()) == ("stopped", [])
    assert await asyncio.gather(*(front.who_answers("alpha") for _ in range(3))) == ["alpha"] * 3
    assert slurm.states("alpha") == ["RUNNING"]
    status = front.supervisor.status()
    assert (status.manager, status.processes[0].state, status.processes[0].pid) == ("slurm", "ready", None)
    await front.watcher.until(events.ServerStopped, "alpha")
    assert slurm.states("alpha") == ["CANCELLED"]
    assert list((slurm.shared / "places").iterdir()) == []


async def test_faults_of_calls(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """Whatever becomes of single calls, one job is submitted, and the request is answered by it."""
    front = await up(job_server("alpha", free_port()))
    busy = ("sbatch", "refuse:Unable to contact slurm controller (connect failure)")
    slurm.fail(busy, ("squeue", "away"), ("sbatch", "late"), ("scancel", "away"))
    assert await front.who_answers("alpha") == "alpha"
    assert slurm.states("alpha") == ["RUNNING"]
    await front.supervisor.unload("alpha")
    assert (slurm.states("alpha"), slurm.faults()) == (["CANCELLED"], [])


async def test_what_is_refused(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """Slurm's own words are the error of the request; a job that is held is one, too."""
    front = await up(job_server("alpha", free_port()))
    slurm.fail(("sbatch", "refuse:Invalid partition name specified"))
    with pytest.raises(UnavailableError, match="Invalid partition name") as refused:
        await wake(front.supervisor, "alpha")
    assert refused.value.code == "server_failed"
    assert (await front.watcher.until(events.ServerFailed, "alpha")).code == "supervise/job-refused"
    slurm.hold(on=True)
    front.supervisor._runners["alpha"].start()
    await until(lambda: slurm.states("alpha") == ["PENDING"])
    slurm.wish("alpha", "PENDING", "JobHeldAdmin")
    with pytest.raises(UnavailableError, match="JobHeldAdmin"):
        await wake(front.supervisor, "alpha", timeout_s=60)
    assert slurm.states("alpha") == ["CANCELLED"]


async def test_no_room(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """A job that waits is no failure, for longer than a start may take; a request's own time ends with a type."""
    slurm.hold(on=True)
    short = job_server("alpha", free_port(), start_timeout_s=3, stall_timeout_s=3)
    front = await up(short, job_server("beta", free_port()))
    for late in await asyncio.gather(
        *(wake(front.supervisor, n, 5) for n in ("alpha", "beta")), return_exceptions=True
    ):
        assert isinstance(late, UnavailableError)
        assert late.code == "start_timeout"
    assert [front.supervisor.state(name) for name in ("alpha", "beta")] == ["starting", "starting"]
    assert front.watcher.of(events.ServerFailed) == []
    slurm.hold(on=False)
    assert await front.who_answers("beta") == "beta"
    assert slurm.states("beta") == ["RUNNING"]


@pytest.mark.parametrize("state", ["killed", "requeued"])
async def test_a_job_that_ends(up: Up, slurm: FakeSlurm, free_port: FreePort, state: str) -> None:
    """What runs is ended first, whoever ended the job; requests wait for the next one."""
    front = await up(job_server("alpha", free_port()))
    assert await front.who_answers("alpha") == "alpha"
    first = front.supervisor._runners["alpha"].address
    if state == "killed":
        slurm.close()
    else:
        slurm.wish("alpha", "PENDING" if state == "requeued" else state)
    failed = await front.watcher.until(events.ServerFailed, "alpha")
    assert failed.code in ("supervise/job-ended", "supervise/unhealthy")  # by who noticed first
    assert await front.who_answers("alpha") == "alpha"
    states = slurm.states("alpha")
    assert states.count("RUNNING") == 1
    assert (len(states), states[0] != "RUNNING") == (2, True)
    assert front.supervisor._runners["alpha"].address == first


async def test_a_port_that_is_taken(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """A job takes another port of its node, and its requests go there."""
    port = free_port()
    stranger = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    try:
        front = await up(job_server("alpha", port))
        assert await front.who_answers("alpha") == "alpha"
        assert front.supervisor._runners["alpha"].address == ("127.0.0.1", port + 1000)
    finally:
        stranger.close()


async def test_turns(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """Of a group one runs, the next when nothing is left of the one before."""
    group = {"exclusive": "card", "min_stay_s": 0.0}
    servers = [job_server(name, free_port(), **group) for name in ("alpha", "beta")]
    front = await up(*servers)
    for name in ("alpha", "beta", "alpha"):
        assert await front.who_answers(name) == name
        assert [job["comment"] for job in slurm.jobs() if job["state"] == "RUNNING"] == [name]
    assert len(slurm.jobs()) == 3


async def test_a_server_that_cannot_start(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """The end of its own log, on the shared file system, says why; what earlier runs wrote there does not."""
    front = await up(job_server("alpha", free_port(), "oom-at-start"), job_server("beta", free_port(), "exit-1"))
    (slurm.shared / "logs/beta.log").write_text("couldn't bind HTTP server socket, hostname: h, port: 1\n")
    for name, code in (("alpha", "supervise/kv-out-of-memory"), ("beta", "supervise/unknown-flag")):
        with pytest.raises(UnavailableError):
            await wake(front.supervisor, name, timeout_s=60)
        failed = front.watcher.of(events.ServerFailed, name)[-1]
        assert (failed.code, failed.exit_code) == (code, 1)
        assert "RUNNING" not in slurm.states(name)


async def test_the_next_front_takes_over(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """What a front left is adopted by the next, also what waits for a node; nothing is submitted twice."""
    servers = [job_server(name, free_port()) for name in ("alpha", "beta")]
    first: Front = await up(*servers)
    assert await first.who_answers("alpha") == "alpha"
    slurm.hold(on=True)
    waiting = asyncio.create_task(first.who_answers("beta"))
    await until(lambda: slurm.states("beta") == ["PENDING"])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await first.leave()
    second: Front = await up(*servers)
    assert [event.name for event in second.watcher.of(events.ServerAdopted)] == ["alpha", "beta"]
    slurm.hold(on=False)
    assert [await second.who_answers(name) for name in ("alpha", "beta")] == ["alpha", "beta"]
    assert [len(slurm.jobs(name)) for name in ("alpha", "beta")] == [1, 1]


async def test_nobody_else_answers(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """A server of another name where ours should be is never sent a request."""
    front = await up(job_server("alpha", free_port(), alias="omega"))
    with pytest.raises(UnavailableError, match="omega"):
        await wake(front.supervisor, "alpha", timeout_s=60)
    assert slurm.states("alpha") == ["CANCELLED"]


async def test_who_does_not_lead_changes_nothing(
    up: Up, slurm: FakeSlurm, free_port: FreePort, state_dir: Path
) -> None:
    """A front whose lease is another's submits and cancels nothing, whatever it is asked."""
    server = job_server("alpha", free_port())
    front = await up(server)
    other = Front(slurm.fleet(server), state_dir)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await other.owner.scale("alpha", 1)
        assert (await other.owner.living({}), slurm.jobs()) == (([], []), [])
    finally:
        await other.leave()
    assert front.owner.election.leads


async def test_a_wait_is_no_late_start() -> None:
    """While a process has no place to run at, whoever waits for it is told so."""
    told: list[bool] = []

    class Waiting:
        waits = True

        async def started(self) -> int:
            while len(told) < 2:  # noqa: ASYNC110 - a test's
                await asyncio.sleep(0)
            return 7

    assert await readiness.wait_started(cast("OwnedProcess", Waiting()), 0.001, told.append) == 7
    assert len(told) >= 2


async def test_always_on(up: Up, slurm: FakeSlurm, free_port: FreePort) -> None:
    """Its job may begin again by itself while no front is there; a front's own restart comes first."""
    front = await up(job_server("alpha", free_port(), start="boot"))
    await front.watcher.until(events.ServerReady, "alpha")
    (job,) = slurm.jobs()
    assert "#SBATCH --requeue" in (slurm.folder / "jobs" / f"{job['id']}.sh").read_text()
