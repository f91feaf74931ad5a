"""Hosts that are network namespaces, and a network between them that loses packets without a word.

Two fronts, an API server (fake), two nodes with the pods, and clients each have a namespace of their own on one bridge.
Cables are pulled, what one host sends to another is lost one way, leaders and servers are killed; no connection is ever
reset by that, as none is where a switch dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.supervise.scheduled.lease import address_of, claim_of
from tests.cluster.asking import MODELS
from tests.cluster.conftest import certified, cluster_of, fleet_of, pod_of
from tests.cluster.fake_cluster import Cluster
from tests.cluster.front_pod import FrontPod
from tests.supervise.conftest import FAKE, write_deployment_dir
from tests.supervise.conftest import routes as table_of
from tests.systemd.network import Network

REPOSITORY = Path(__file__).parents[2]
LEASE_S = 9.0
KEY = "a-long-enough-key-0123456789"
API, FIRST, SECOND, CARD, OTHER, CLIENTS = range(6)
"""Hosts: the API server, two fronts, the node of the group's card, the other node, the clients."""
FRONT_PORT, API_PORT, POD_PORT = 8000, 6443, 8081
QUEUE_S = 30.0
"""How long a request may wait for a server."""


class Request(msgspec.Struct, frozen=True):
    """How one ended; see `tests.cluster.asking`."""

    front: int
    model: str
    said: str
    begun: float
    ended: float


class Site:
    """Everything, and what was done to it."""

    def __init__(self, network: Network, cluster: Cluster, fronts: list[FrontPod]) -> None:
        self.network = network
        self.cluster = cluster
        self.fronts = fronts
        self.requests: list[Request] = []
        self.cuts: list[tuple[int, float, float]] = []
        """Which front was cut off from the clients, from when until when."""
        self.troubles: Counter[str] = Counter()
        self._pulled: dict[int, float] = {}
        self._lost: set[tuple[int, int]] = set()

    def leader(self) -> FrontPod | None:
        """By what the lease says."""
        address = address_of(claim_of(self.cluster.lease).holder)
        return next((front for front in self.fronts if front.address == address), None)

    async def pull(self, host: int) -> None:
        """Cut a host off from all others."""
        await asyncio.to_thread(self.network.cable, host, "down")
        self._pulled[host] = time.monotonic()
        self.troubles[f"cable of {host}"] += 1

    async def lose(self, sender: int, to: int) -> None:
        """Lose what one sends to another."""
        await asyncio.to_thread(self.network.lose, sender, to)
        self._lost.add((sender, to))
        self.troubles["one way"] += 1

    async def heal(self) -> None:
        """A whole network again."""
        for host, since in tuple(self._pulled.items()):
            await asyncio.to_thread(self.network.cable, host, "up")
            if host in (FIRST, SECOND):
                self.cuts.append((host - FIRST, since, time.monotonic()))
            del self._pulled[host]
        for sender, to in tuple(self._lost):
            await asyncio.to_thread(self.network.deliver, sender, to)
            self._lost.discard((sender, to))

    async def clients(self, seconds: float, *, count: int = 4, seed: int = 7) -> None:
        """Have them ask, in their namespace, and keep how each request ended."""
        words = [word for front in self.fronts for word in ("--front", front.url)]
        words += ["--seconds", str(seconds), "--clients", str(count), "--seed", str(seed), "--key", KEY]
        program = (*self.network.inside(CLIENTS), sys.executable, "-m", "tests.cluster.asking", *words)
        asking = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY)
        assert asking.stdout is not None
        try:
            async for line in asking.stdout:
                self.requests.append(msgspec.json.decode(line, type=Request))
            assert await asking.wait() == 0
        finally:
            if asking.returncode is None:
                asking.kill()
                await asking.wait()

    def excused(self, request: Request) -> bool:
        """Whether the client's own way to the front was cut meanwhile, or that front's process ended."""
        front = self.fronts[request.front]
        if any(request.begun <= end <= request.ended + 1 for end in front.ends):
            return True
        return any(
            number == request.front and since <= request.ended and request.begun <= until
            for number, since, until in self.cuts
        )

    def broken_promises(self) -> list[Request]:
        """Requests that were taken and had neither an answer nor a typed error, or an answer that is not theirs."""
        wrong = [r for r in self.requests if r.said.startswith(("stranger", "untyped"))]
        silent = [r for r in self.requests if r.said in ("broken", "late")]
        return [*wrong, *(request for request in silent if not self.excused(request))]

    async def answered(self) -> None:
        """Wait until every model answers through every front."""
        begun = len(self.requests)
        asking = asyncio.create_task(self.clients(600, seed=begun))
        try:
            missing = {(front, model) for front in range(len(self.fronts)) for model in MODELS}
            while missing:
                assert not asking.done(), f"not answered: {missing}"
                await asyncio.sleep(0.1)
                missing -= {(r.front, r.model) for r in self.requests[begun:] if r.said == r.model}
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


@pytest.fixture
async def site(tmp_path: Path, no_orphans: None) -> AsyncIterator[Site]:
    """A group of two that take turns on one node's card, one on demand on another node, two fronts."""
    with Network(6) as network:
        account, keys = tmp_path / "account", tmp_path / "keys"
        keys.write_text(f"{KEY}\n")
        keys.chmod(0o600)
        tls = await certified(account, network.addresses[API])
        group: dict[str, Any] = {"exclusive": "card", "min_stay_s": 0.0}
        servers = (
            _pod(network, CARD, "alpha", POD_PORT, start="boot", default=True, **group),
            _pod(network, CARD, "beta", POD_PORT + 1, **group),
            _pod(network, OTHER, "gamma", POD_PORT, idle_timeout_s=2),
        )
        cluster = cluster_of(*servers)
        bound = network.tcp_socket(API)
        bound.bind((network.addresses[API], API_PORT))
        await cluster.open(tls, bound)
        api = (network.addresses[API], API_PORT)
        fronts = []
        for host, name in ((FIRST, "front-a"), (SECOND, "front-b")):
            directory, address = tmp_path / name, network.addresses[host]
            directory.mkdir()
            fleet = fleet_of(account, *servers, lease_s=LEASE_S)
            write_deployment_dir(directory / "deployment", fleet, FRONT_PORT, front=_front(fleet, address, keys))
            fronts.append(FrontPod(name, directory, (address, FRONT_PORT), api, network.inside(host)))
        try:
            for front in fronts:
                front.keep()
            yield Site(network, cluster, fronts)
        finally:
            for front in fronts:
                await front.close()
            await cluster.close()


def _pod(network: Network, node: int, name: str, port: int, **changes: Any) -> Any:
    """A server whose pod runs on `node`."""
    address, model = network.addresses[node], f"/models/{name}.gguf"
    program = (sys.executable, "-S", str(FAKE), "--host", address, "--port", str(port))
    argv = (*network.inside(node), *program, "--model", model, "--alias", name)
    return pod_of(name, port, argv=argv, host=address, **changes)


def _front(fleet: Any, address: str, keys: Path) -> Any:
    """Where a front listens, and for how long requests wait there."""
    plain = table_of(fleet, FRONT_PORT).front
    return msgspec.structs.replace(plain, host=address, api_key_file=str(keys), queue_timeout_s=QUEUE_S)


async def _trouble(site: Site, draw: random.Random, until: float) -> None:
    """Until then: something is cut, or killed, and healed, again and again."""
    pairs = ((FIRST, SECOND), (SECOND, FIRST), (FIRST, API), (API, FIRST), (SECOND, API), (API, SECOND))
    pairs += ((FIRST, CARD), (CARD, FIRST), (SECOND, CARD), (CARD, SECOND))
    while (left_s := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, draw.uniform(LEASE_S / 2, 3 * LEASE_S)))
        await site.heal()
        for host, chance in ((API, 0.1), (FIRST, 0.25), (SECOND, 0.25), (CARD, 0.1), (OTHER, 0.15)):
            if draw.random() < chance:
                await site.pull(host)
        if draw.random() < 0.4:
            await site.lose(*draw.choice(pairs))
        leader = site.leader()
        if draw.random() < 0.15 and leader is not None and leader.process is not None:
            site.troubles["leader killed"] += 1
            with contextlib.suppress(ProcessLookupError):
                leader.process.kill()
        if draw.random() < 0.3:
            site.troubles["server killed"] += 1
            site.cluster.kill(draw.choice([f"launch-{name}" for name in MODELS]))
    await site.heal()


@pytest.mark.slow
async def test_a_leader_falls_silent(site: Site) -> None:
    """Its cable is pulled while a client is passed on to it: a typed error, and the other one leads."""
    await site.answered()
    leader = site.leader()
    assert leader is not None
    before = len(site.requests)
    asking = asyncio.create_task(site.clients(30))
    await asyncio.sleep(2)
    await site.pull(FIRST + site.fronts.index(leader))
    await site.cluster.until(lambda: site.leader() not in (None, leader))
    await asking
    await site.heal()
    other = site.fronts.index(site.leader() or leader)
    assert leader is not site.fronts[other]
    said = Counter(request.said for request in site.requests[before:] if request.front == other)
    assert said["broken"] == said["late"] == 0, said
    assert any(said[model] for model in MODELS), said
    await site.answered()
    assert site.broken_promises() == []
    assert site.cluster.violations == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_partitions_of_namespaces_at_random(site: Site) -> None:
    """Five minutes: never two of the group, every request ends with an answer or a typed error; then all is well."""
    draw = random.Random(int(os.environ.get("LAUNCH_SEED", "7")))  # noqa: S311
    seconds = float(os.environ.get("LAUNCH_SOAK_S", "300"))
    await site.answered()
    await asyncio.gather(_trouble(site, draw, time.monotonic() + seconds), site.clients(seconds, count=6))
    said = Counter(request.said for request in site.requests)
    took = sorted(request.ended - request.begun for request in site.requests)
    figures = {
        "said": said,
        "troubles": site.troubles,
        "leaders": len(set(site.cluster.holders)),
        "starts": len(site.cluster.runs),
        "longest_s": round(took[-1], 1),
    }
    print(json.dumps(figures))  # noqa: T201 - for who runs it
    assert site.cluster.violations == []
    assert site.broken_promises() == []
    assert all(said[model] for model in MODELS), said
    await site.answered()
    assert site.cluster.violations == []
