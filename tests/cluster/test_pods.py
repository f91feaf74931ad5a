"""Servers that are pods: started on demand, idle ones ended, turns; and what goes wrong between us and the cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.ir.live import UnavailableError
from launcher.supervise import events, http
from tests.cluster.conftest import Front, Up, boxed, cluster_of, fleet_of, pod_of
from tests.cluster.fake_cluster import RULES, Link, What
from tests.supervise.conftest import wake

FreePort = Callable[[], int]


async def who_answers(front: Front, name: str) -> str:
    """The name of the server that a request for `name` comes to, whose identity is proven before, as the front does."""
    async with front.supervisor.lease(name, 60) as lease:
        assert lease.address is not None
        port = lease.address[1]

        async def ask() -> bytes:
            return (await http.request("127.0.0.1", port, "/v1/models", timeout_s=10)).body

        assert await front.supervisor.stranger(name, ask) is None
        answer = await http.request("127.0.0.1", port, "/v1/models", timeout_s=10)
        found: str = answer.json()["data"][0]["id"]
        return found


async def test_on_demand_and_back(up: Up, free_port: FreePort) -> None:
    """A request has its pod made, others share the start, and idle it is scaled to none; its life is told."""
    cluster, front = await up(pod_of("alpha", free_port(), idle_timeout_s=1))
    assert cluster.running() == set()
    assert front.supervisor.state("alpha") == "stopped"
    assert await asyncio.gather(*(who_answers(front, "alpha") for _ in range(3))) == ["alpha"] * 3
    assert cluster.runs == ["launch-alpha"]
    status = front.supervisor.status()
    assert (status.manager, status.processes[0].state, status.processes[0].pid) == ("kubernetes", "ready", None)
    await front.watcher.until(events.ServerStopped, "alpha")
    assert (cluster.scales["launch-alpha"]["replicas"], cluster.pods) == (0, {})
    assert await who_answers(front, "alpha") == "alpha"


_FAULTS: dict[str, list[tuple[str, str, What]]] = {
    "two conflicts": [("PATCH", "scale", 409), ("PATCH", "scale", 409)],
    "busy": [("GET", "scale", 429), ("PATCH", "scale", 503), ("PATCH", "scale", 500)],
    "closed": [("GET", "scale", "drop"), ("PATCH", "scale", "drop")],
    "done and not said": [("PATCH", "scale", "late")],
    "garbled": [("GET", "scale", "garbage"), ("PATCH", "scale", "garbage")],
    "silence": [("GET", "scale", "silence")],
}


@pytest.mark.parametrize("faults", _FAULTS.values(), ids=_FAULTS.keys())
async def test_a_start_goes_on(up: Up, free_port: FreePort, faults: list[tuple[str, str, What]]) -> None:
    """Whatever becomes of single calls, one pod is made, and the request is answered by it."""
    cluster, front = await up(pod_of("alpha", free_port()))
    for method, part, what in faults:
        cluster.fail(method, part, what)
    assert await who_answers(front, "alpha") == "alpha"
    assert (cluster.runs, cluster.faults) == (["launch-alpha"], [])


@pytest.mark.parametrize("how", ["410", "410 at once", "ended", "garbled", "list refused", "token", "slow"])
async def test_what_is_watched_is_found_again(up: Up, free_port: FreePort, tmp_path: Path, how: str) -> None:
    """A watch that cannot go on is begun anew from a list: nothing of what happened meanwhile is missed."""
    cluster, front = await up(pod_of("alpha", free_port()), pod_of("beta", free_port()))
    assert await who_answers(front, "alpha") == "alpha"
    if how == "list refused":
        cluster.fail("GET", "/pods", 500, "drop", "garbage", 429)
    if how == "token":
        cluster.tokens = {"second-token"}
        (tmp_path / "account" / "token").write_text("second-token\n")
    if how == "slow":
        cluster.latency_s = 0.3
    if how.startswith("410"):
        cluster.gone_as_event = how == "410"
        cluster.forget_history()
    cluster.end_watches(garbage=how == "garbled")
    cluster.kill("launch-alpha")
    await front.watcher.until(events.ServerFailed, "alpha")
    assert await who_answers(front, "beta") == "beta"
    assert await who_answers(front, "alpha") == "alpha"
    assert cluster.runs.count("launch-alpha") == 2


async def test_what_the_cluster_refuses(up: Up, free_port: FreePort) -> None:
    """No right, no Deployment, no image: the request is told so, and others go on."""
    rules = msgspec.json.decode(msgspec.json.encode(RULES))
    rules[0]["resourceNames"] = ["launch-alpha", "launch-gone", "launch-image"]
    names = ("alpha", "forbidden", "gone", "image")
    cluster, front = await up(*(pod_of(name, free_port()) for name in names), rules=rules)
    del cluster.scales["launch-gone"]
    cluster.wait_reasons["launch-image"] = "InvalidImageName"
    for name, words in (("forbidden", "may not GET"), ("gone", "not found"), ("image", "InvalidImageName")):
        with pytest.raises(UnavailableError, match=words) as refused:
            await wake(front.supervisor, name)
        assert refused.value.code == "server_failed"
        failed = await front.watcher.until(events.ServerFailed, name)
        assert failed.code == "supervise/pod-refused"
    assert cluster.scales["launch-image"]["replicas"] == 0
    assert await who_answers(front, "alpha") == "alpha"


async def test_a_container_that_ends(up: Up, free_port: FreePort) -> None:
    """It is scaled down before the runtime decides; then it is started again, and what cannot start is given up."""
    cluster, front = await up(pod_of("alpha", free_port()), pod_of("dies", free_port(), "exit-134"))
    assert await who_answers(front, "alpha") == "alpha"
    cluster.kill("launch-alpha")
    failed = await front.watcher.until(events.ServerFailed, "alpha")
    assert (failed.code, failed.exit_code, failed.final) == ("supervise/pod-ended", 137, False)
    assert await who_answers(front, "alpha") == "alpha"
    with pytest.raises(UnavailableError, match="exit code 134"):
        await wake(front.supervisor, "dies")
    assert cluster.scales["launch-dies"]["replicas"] == 0


async def test_a_pod_that_is_evicted(up: Up, free_port: FreePort) -> None:
    """A drain of its node ends it: requests wait for the next one, and never go to what ends."""
    cluster, front = await up(pod_of("alpha", free_port()))
    assert await who_answers(front, "alpha") == "alpha"
    cluster.evict("launch-alpha")
    await front.watcher.until(events.ServerFailed, "alpha")
    assert await who_answers(front, "alpha") == "alpha"


async def test_a_container_on_demand_and_its_turns(up: Up, free_port: FreePort) -> None:
    """A service is scaled as a server is: by who asks, to none when idle, and never beside another of its group."""
    alpha = pod_of("alpha", free_port(), exclusive="card", min_stay_s=0.0)
    cluster, front = await up(alpha, boxed("ears", free_port(), exclusive="card", idle_timeout_s=1))
    async with front.supervisor.lease("ears", 60) as lease:
        assert lease.address is not None
        assert (await http.request("127.0.0.1", lease.address[1], "/health", timeout_s=10)).status == 200
        assert cluster.running() == {"launch-ears"}
    assert await who_answers(front, "alpha") == "alpha"
    assert (cluster.runs, cluster.violations) == (["launch-ears", "launch-alpha"], [])
    async with front.supervisor.lease("ears", 60):
        assert cluster.running() == {"launch-ears"}
    await front.watcher.until(events.ServerStopped, "alpha")
    await cluster.until(lambda: not cluster.running())
    assert cluster.violations == []


async def test_turns(up: Up, free_port: FreePort) -> None:
    """Of a group one has a pod; the next is made when nothing is left of the one before."""
    port = free_port()
    group = {"exclusive": "card", "min_stay_s": 0.0}
    cluster, front = await up(pod_of("alpha", port, start="boot", default=True, **group), pod_of("beta", port, **group))
    assert front.supervisor.state("alpha") == "ready"
    for name in ("beta", "alpha", "beta"):
        assert await who_answers(front, name) == name
    assert cluster.violations == []
    assert cluster.runs == ["launch-alpha", "launch-beta", "launch-alpha", "launch-beta"]


async def test_a_node_that_is_lost(up: Up, free_port: FreePort) -> None:
    """Nobody has the turn of one that may still run somewhere: a typed error, until the node is heard of."""
    group = {"exclusive": "card", "min_stay_s": 0.0, "stop_grace_s": 0.2}
    cluster, front = await up(pod_of("alpha", free_port(), **group), pod_of("beta", free_port(), **group))
    assert await who_answers(front, "alpha") == "alpha"
    cluster.evict("launch-alpha", node_is_lost=True)
    with pytest.raises(UnavailableError) as refused:
        await wake(front.supervisor, "beta", timeout_s=2)
    assert refused.value.code in ("start_timeout", "server_stuck")
    cluster.found_node("launch-alpha")
    assert await who_answers(front, "beta") == "beta"
    assert cluster.violations == []


async def test_the_next_front_takes_over(up: Up, free_port: FreePort) -> None:
    """What a front left running is adopted by the next, also what has no pod yet; nothing starts twice."""
    group = {"exclusive": "card"}
    servers = (
        pod_of("alpha", free_port(), **group),
        pod_of("beta", free_port(), **group),
        pod_of("gamma", free_port()),
    )
    cluster, first = await up(*servers)
    assert await who_answers(first, "alpha") == "alpha"
    await first.leave()
    cluster.scales["launch-gamma"] = {"replicas": 1, "version": 2}  # the controller has not seen it yet
    _, second = await up(*servers, cluster=cluster)
    adopted = [event.name for event in second.watcher.of(events.ServerAdopted)]
    assert adopted == ["alpha", "gamma"]
    assert second.supervisor.state("gamma") == "starting"
    cluster._reconcile("launch-gamma")
    assert await who_answers(second, "gamma") == "gamma"
    assert await who_answers(second, "alpha") == "alpha"
    assert cluster.runs == ["launch-alpha", "launch-gamma"]
    assert len(set(cluster.holders) - {""}) == 2


async def test_somebody_scales_behind_us(up: Up, free_port: FreePort) -> None:
    """`kubectl scale`: what may run is taken over, what takes the place of another is ended again."""
    group = {"exclusive": "card"}
    servers = (
        pod_of("alpha", free_port(), **group),
        pod_of("beta", free_port(), **group),
        pod_of("gamma", free_port()),
    )
    cluster, front = await up(*servers)
    assert await who_answers(front, "alpha") == "alpha"
    cluster.scale("launch-gamma", 1)
    adopted = await front.watcher.until(events.ServerAdopted, "gamma")
    assert adopted.by_hand
    cluster.scale("launch-beta", 1)
    await front.watcher.until(events.ServerStopped, "beta")
    assert cluster.scales["launch-beta"]["replicas"] == 0
    assert await who_answers(front, "alpha") == "alpha"


async def test_nobody_else_answers(up: Up, free_port: FreePort) -> None:
    """A server of another name where ours should be is never sent a request, however well it is."""
    cluster, front = await up(pod_of("alpha", free_port(), alias="omega"))
    with pytest.raises(UnavailableError, match="omega"):
        await wake(front.supervisor, "alpha")
    assert cluster.scales["launch-alpha"]["replicas"] == 0

    async def says() -> bytes:
        return b'{"data": [{"id": "omega"}]}'

    assert "omega" in (await front.supervisor.stranger("alpha", says) or "")


async def test_who_does_not_lead_changes_nothing(up: Up, free_port: FreePort, tmp_path: Path, state_dir: Path) -> None:
    """A front whose lease is another's scales nothing, whatever it is asked."""
    server = pod_of("alpha", free_port())
    cluster, front = await up(server)
    other = Front(fleet_of(tmp_path / "account", server), cluster.port, state_dir)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await other.pods.scale("alpha", 1)
        assert await other.pods.living({}) == ([], [])
        assert ("PATCH", "/apis/apps/v1/namespaces/fleet/deployments/launch-alpha/scale") not in cluster.asked
        assert not other.pods.election.leads
    finally:
        await other.leave()
    assert front.pods.election.leads


async def test_cut_off_from_the_cluster(free_port: FreePort, tmp_path: Path, state_dir: Path, no_orphans: None) -> None:
    """A leader that hears nothing of the API server stops to act before the other begins; nothing runs twice."""
    group = {"exclusive": "card", "min_stay_s": 0.0}
    servers = (pod_of("alpha", free_port(), **group), pod_of("beta", free_port(), **group))
    cluster = cluster_of(*servers)
    await cluster.open()
    links = [Link(cluster.port), Link(cluster.port)]
    fronts = []
    try:
        for link in links:
            await link.open()
            fronts.append(Front(fleet_of(tmp_path / "account", *servers, lease_s=9.0), link.port, state_dir))
        first, second = fronts
        await first.up()
        assert await who_answers(first, "alpha") == "alpha"
        coming = asyncio.create_task(second.up())
        links[0].cut()
        swap = asyncio.create_task(wake(first.supervisor, "beta"))  # it would end alpha, and start beta
        await second.pods.election.elected.wait()
        assert not first.pods.election.leads
        await coming
        assert [event.name for event in second.watcher.of(events.ServerAdopted)] == ["alpha"]
        first.supervisor.abandon()  # as its runtime does
        swap.cancel()
        (ended,) = await asyncio.gather(swap, return_exceptions=True)
        assert isinstance(ended, UnavailableError | asyncio.CancelledError)
        links[0].heal()
        assert await who_answers(second, "alpha") == "alpha"
        assert await who_answers(second, "beta") == "beta"
        assert first.pods.election.lost.is_set()
        assert (cluster.runs, cluster.violations) == (["launch-alpha", "launch-beta"], [])
    finally:
        for front in fronts:
            await front.leave()
        for link in links:
            await link.close()
        await cluster.close()


async def test_a_real_server(up: Up, free_port: FreePort, llama_server: Path, tiny_models: Any) -> None:
    """A pod that is a real llama-server: its model and name are proven, and it answers."""
    model, port = tiny_models("llama"), free_port()
    words = ("--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--alias", "alpha", "--fit", "off")
    quick = ("--no-warmup", "--offline", "--device", "none", "-c", "512", "-np", "1", "--threads", "1")
    pod = pod_of("alpha", port, argv=(str(llama_server), *words, *quick), model_path=str(model))
    cluster, front = await up(pod)
    assert await who_answers(front, "alpha") == "alpha"
    async with front.supervisor.lease("alpha", 60):
        body = {"prompt": "a", "n_predict": 2}
        answer = await http.request("127.0.0.1", port, "/completion", body=body, timeout_s=60)
    assert answer.status == 200
    assert cluster.runs == ["launch-alpha"]
