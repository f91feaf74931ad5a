"""A fake Slurm, and fronts of it: the real supervisor, owner and election, and scripts as they are rendered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.files.packaged import packaged_dir
from launcher.files.state import deployment_state_dir
from launcher.ir.config import DeployConfig, SlurmConfig
from launcher.ir.fleet import FleetManifest, JobUnit, ServerUnit, SlurmUnit
from launcher.render.command import Command
from launcher.render.jobs import job_values
from launcher.render.pages import Pages
from launcher.supervise import Supervisor, http
from launcher.supervise.slurm import Jobs
from tests.render.plan_factory import fleet_plan, server_plan
from tests.supervise.conftest import FAKE, Watcher, manifest, unit

PROGRAM = Path(__file__).with_name("fake_slurm.py")


@functools.cache
def pages() -> Pages:
    """What writes batch scripts."""
    root = packaged_dir("templates")
    return Pages({f"slurm/{p.name}": p.read_text() for p in (root / "slurm").iterdir()}, {"header": "# by a test"})


def job_server(name: str, port: int, *faults: str, alias: str = "", **changes: Any) -> ServerUnit:
    """A server on demand whose job runs a fake llama-server."""
    model = f"/models/{name}.gguf"
    flags = tuple(part for fault in faults for part in ("--fault", fault))
    argv = (sys.executable, "-S", str(FAKE), "--port", str(port), "--model", model, "--alias", alias or name, *flags)
    return unit(name, argv, port, model, **{"start": "demand", "fatal": False, "stall_timeout_s": 20, **changes})


class FakeSlurm:
    """Its folder, and what a test may see and wish."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("jobs", "wishes", "bin"):
            (folder / name).mkdir(parents=True)
        for name in ("sbatch", "squeue", "scancel"):
            program = folder / "bin" / name
            program.write_text(f"#!{sys.executable} -S\n{PROGRAM.read_text()}")
            program.chmod(0o755)
        monkeypatch.setenv("LAUNCH_FAKE_SLURM", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.shared = folder / "shared"

    def fleet(self, *servers: ServerUnit, lease_s: float = 15) -> FleetManifest:
        """As the front reads it: each server with its script."""
        deploy = DeployConfig(slurm=SlurmConfig(listen="127.0.0.1"), units=False)
        jobs = {}
        for server in servers:
            planned = server_plan(server.name, port=server.port, tier="hot" if server.start == "boot" else "warm")
            plan = fleet_plan(planned, deploy=deploy)
            name = f"launch:test:{server.exclusive or server.name}"
            command = Command((), server.argv, server.env)
            values, _ = job_values(planned, plan, command, name=name, folder=str(self.shared))
            script = pages().file(server.name, "slurm/job.sbatch.j2", values, script=True)
            jobs[server.name] = JobUnit(name=name, script=script.text)
        return manifest(*servers, slurm=SlurmUnit(shared_dir=str(self.shared), jobs=jobs, lease_s=lease_s))

    def jobs(self, server: str = "") -> list[dict[str, Any]]:
        """Every job that ever was, or those of one server, the oldest first."""
        files = sorted((self.folder / "jobs").glob("*.json"), key=lambda file: int(file.stem))
        found = [{"id": int(file.stem), **json.loads(file.read_text())} for file in files]
        return [job for job in found if server in ("", job["comment"])]

    def states(self, server: str) -> list[str]:
        """Of all jobs of a server."""
        return [job["state"] for job in self.jobs(server)]

    def wish(self, server: str, state: str, why: str = "None") -> None:
        """Have the last job of a server be in this state."""
        (self.folder / "wishes" / str(self.jobs(server)[-1]["id"])).write_text(f"{state}|{why}")

    def fail(self, *faults: tuple[str, str]) -> None:
        """What goes wrong with the next calls: program and how."""
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def faults(self) -> list[Any]:
        """Those that nothing has met yet."""
        found: list[Any] = json.loads((self.folder / "faults.json").read_text())
        return found

    def hold(self, *, on: bool) -> None:
        """Whether no job begins: there is no room."""
        file = self.folder / "hold"
        file.touch() if on else file.unlink()

    def close(self) -> None:
        """End what runs."""
        for job in self.jobs():
            if job["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job["pid"], signal.SIGKILL)


class Front:
    """One front, that leads once it is `up`."""

    def __init__(self, fleet: FleetManifest, state_dir: Path) -> None:
        assert isinstance(fleet.slurm, SlurmUnit)
        self.owner = Jobs(fleet.slurm, fleet, address="127.0.0.1:1")
        self.watcher = Watcher()
        self.supervisor = Supervisor(fleet, state_dir=state_dir, owner=self.owner, emit=self.watcher)
        self._tasks: list[asyncio.Task[None]] = []

    async def up(self) -> None:
        """Be elected, find what runs, start what is always on; that may wait for long."""
        self._tasks.append(asyncio.create_task(self.owner.election.run()))
        await self.owner.election.elected.wait()
        await self.supervisor.recover()
        self._tasks.append(asyncio.create_task(self.supervisor.start()))
        await asyncio.sleep(0)

    async def leave(self) -> None:
        """End, as after a signal: what runs runs on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.owner.election.give_back()
        self.supervisor.abandon()
        await self.owner.close()

    async def who_answers(self, name: str, timeout_s: float = 60) -> str:
        """The name of the server that a request for `name` comes to, its identity proven before, as the front does."""
        async with self.supervisor.lease(name, timeout_s) as lease:
            assert lease.address is not None
            host, port = lease.address

            async def ask() -> bytes:
                return (await http.request(host, port, "/v1/models", timeout_s=10)).body

            assert await self.supervisor.stranger(name, ask) is None
            found: str = (await http.request(host, port, "/v1/models", timeout_s=10)).json()["data"][0]["id"]
            return found


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this deployment, away from the user's."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    return deployment_state_dir("test", create=True)


@pytest.fixture
async def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_orphans: None) -> AsyncIterator[FakeSlurm]:
    """Without a job."""
    found = FakeSlurm(tmp_path / "slurm", monkeypatch)
    yield found
    found.close()


Up = Callable[..., Any]


@pytest.fixture
async def up(slurm: FakeSlurm, state_dir: Path) -> AsyncIterator[Up]:
    """Call it with servers for a front that leads; it ends with the test."""
    fronts: list[Front] = []

    async def make(*servers: ServerUnit) -> Front:
        fronts.append(Front(slurm.fleet(*servers), state_dir))
        await fronts[-1].up()
        return fronts[-1]

    yield make
    for front in fronts:
        await front.leave()
