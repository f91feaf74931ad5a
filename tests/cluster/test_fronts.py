"""Two whole fronts of one cluster, each a process: one leads, the other passes clients on; leaders die and are cut off.

The API server speaks TLS here, and each front has a network of its own to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.supervise.scheduled.lease import address_of, claim_of
from tests.cluster.conftest import certified, cluster_of, fleet_of, pod_of
from tests.cluster.fake_cluster import Cluster, Link
from tests.supervise.conftest import write_deployment_dir

FreePort = Callable[[], int]
LEASE_S = 9.0


class FrontPod:
    """A front as its kubelet keeps it: started again whenever it ended."""

    def __init__(self, name: str, directory: Path, port: int, link: Link) -> None:
        """Not started."""
        self.name = name
        self.port = port
        self.link = link
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._directory = directory
        self._keeping: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Start it, and again."""
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End it for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def _keep(self) -> None:
        own = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.link.port)}
        state = {"LAUNCH_STATE_DIR": str(self._directory / "state"), "POD_NAME": self.name, "POD_IP": "127.0.0.1"}
        with (self._directory / "log").open("ab") as log:
            while True:
                self.starts += 1
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "launcher.runtime", str(self._directory / "deployment")),
                    env=os.environ | own | state,
                    stdout=log,
                    stderr=log,
                )
                await self.process.wait()
                await asyncio.sleep(0.2)


class Site:
    """A cluster with its fronts."""

    def __init__(self, cluster: Cluster, fronts: list[FrontPod]) -> None:
        self.cluster = cluster
        self.fronts = fronts
        self.answers: Counter[str] = Counter()

    def leader(self) -> FrontPod | None:
        """By what the lease says."""
        address = address_of(claim_of(self.cluster.lease).holder)
        return next((f for f in self.fronts if address is not None and f.port == address[1]), None)

    async def led(self, *, by: FrontPod | None = None) -> FrontPod:
        """Wait for a leader, or for this one."""
        await self.cluster.until(lambda: self.leader() is not None and by in (None, self.leader()))
        found = self.leader()
        assert found is not None
        return found

    async def ask(self, front: FrontPod, model: str, timeout_s: float = 60) -> str:
        """Who answered, or why nobody did: a typed error, or that the connection broke. Nobody else ever answers."""
        try:
            async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
                body = {"model": model, "prompt": "a", "max_tokens": 1}
                answer = await client.post(f"http://127.0.0.1:{front.port}/v1/completions", json=body)
        except httpx.TransportError as error:
            return f"connection: {type(error).__name__}"
        found = answer.json()
        if answer.status_code != 200:
            assert found["error"]["code"], found
            return str(found["error"]["code"])
        assert (found["model"], answer.headers["x-launch-server"]) == (model, model), f"a stranger answered: {found}"
        return model

    async def answered(self, front: FrontPod, model: str) -> None:
        """Ask until it is answered, as clients do."""
        said = ""
        async with asyncio.timeout(120):
            while (said := await self.ask(front, model)) != model:  # noqa: ASYNC110 - as clients do
                await asyncio.sleep(0.2)
        assert said == model


@pytest.fixture
async def site(tmp_path: Path, free_port: FreePort, no_orphans: None) -> AsyncIterator[Site]:
    """Two fronts, a group of two that take turns on one card, and one on demand."""
    account = tmp_path / "account"
    tls = await certified(account)
    group: dict[str, Any] = {"exclusive": "card", "min_stay_s": 0.0}
    servers = (
        pod_of("alpha", free_port(), start="boot", default=True, **group),
        pod_of("beta", free_port(), **group),
        pod_of("gamma", free_port(), idle_timeout_s=2),
    )
    cluster = cluster_of(*servers)
    await cluster.open(tls)
    fronts = []
    for name in ("front-a", "front-b"):
        directory, port, link = tmp_path / name, free_port(), Link(cluster.port)
        directory.mkdir()
        await link.open()
        write_deployment_dir(directory / "deployment", fleet_of(account, *servers, lease_s=LEASE_S), port)
        fronts.append(FrontPod(name, directory, port, link))
    try:
        for front in fronts:
            front.keep()
        yield Site(cluster, fronts)
    finally:
        for front in fronts:
            await front.close()
            await front.link.close()
        await cluster.close()


@pytest.mark.slow
async def test_one_leads_and_the_other_follows(site: Site) -> None:
    """Both answer; the leader is killed, cut off, and told to end, and each time the other goes on with what runs."""
    cluster = site.cluster
    leader = await site.led()
    for front in site.fronts:
        for model in ("alpha", "gamma", "beta"):
            await site.answered(front, model)
    assert (len(set(cluster.holders)), cluster.violations) == (1, [])
    follower = next(front for front in site.fronts if front is not leader)
    runs = cluster.runs.count("launch-beta")

    assert leader.process is not None
    leader.process.kill()
    assert await site.led(by=follower) is follower
    await site.answered(follower, "beta")
    assert cluster.runs.count("launch-beta") == runs  # adopted, as it was
    await site.answered(leader, "beta")  # started again, it passes clients on

    before = follower.starts
    follower.link.cut()
    await site.led(by=leader)
    await site.answered(leader, "alpha")
    await cluster.until(lambda: follower.starts > before)  # who leads no more ends, and waits its turn
    follower.link.heal()
    await site.answered(follower, "alpha")

    assert leader.process is not None
    leader.process.send_signal(signal.SIGTERM)
    await site.led(by=follower)
    await site.answered(follower, "gamma")
    assert cluster.violations == []


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_partitions_at_random(site: Site) -> None:
    """Five minutes: networks are cut and healed, leaders killed; never two of the group, every request ends."""
    draw = random.Random(int(os.environ.get("LAUNCH_SEED", "7")))  # noqa: S311
    loop = asyncio.get_running_loop()
    until = loop.time() + float(os.environ.get("LAUNCH_SOAK_S", "300"))

    async def clients(number: int) -> None:
        mine = random.Random(number)  # noqa: S311
        while loop.time() < until:
            said = await site.ask(mine.choice(site.fronts), mine.choice(("alpha", "beta", "gamma")), 60)
            site.answers[said] += 1
            await asyncio.sleep(0.05)

    async def trouble() -> None:
        while loop.time() < until:
            await asyncio.sleep(draw.uniform(LEASE_S / 2, 3 * LEASE_S))
            for front in site.fronts:
                front.link.cut() if draw.random() < 0.3 else front.link.heal()
            leader = site.leader()
            if draw.random() < 0.2 and leader is not None and leader.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    leader.process.kill()
            if draw.random() < 0.3:
                site.cluster.kill(draw.choice(("launch-alpha", "launch-beta", "launch-gamma")))

    await asyncio.gather(trouble(), *(clients(n) for n in range(4)))
    figures = {"answers": site.answers, "holders": len(set(site.cluster.holders)), "starts": len(site.cluster.runs)}
    print(json.dumps(figures))  # noqa: T201 - for who runs it
    assert site.cluster.violations == []
    assert sum(site.answers[name] for name in ("alpha", "beta", "gamma")) > 0
