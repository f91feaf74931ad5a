"""The simulated front of `benchmarks.cluster`: what it says can be trusted as far as this goes."""

from __future__ import annotations

import pytest

from benchmarks.cluster.load import Ask, Outage, Shape, asks, outages, popularity
from benchmarks.cluster.policies import Policy, safe_count, usual_count
from benchmarks.cluster.simulation import Outcome, played
from benchmarks.cluster.site import Site, made
from launcher.supervise.room import Room

SHAPE = Shape(seconds=200.0, per_s=0.8, drift_s=100.0, mtbf_s=300.0, away_s=30.0)
POLICIES = {
    "launch": Policy(title=""),
    "pools": Policy(title="", pools=True),
    "one runtime": Policy(title="", one_runtime=True),
    "two homes": Policy(title="", homes=2),
    "static": Policy(title="", static=True),
    "count": Policy(title="", counts="usual"),
}


@pytest.fixture(scope="module")
def sites() -> dict[int, Site]:
    """Three hosts, ten models each, with one home and with two."""
    return {homes: made(3, 30, homes, seed=1) for homes in (1, 2)}


def outcome_of(sites: dict[int, Site], policy: Policy, seed: int = 1) -> Outcome:
    """Of ten minutes in which hosts fail."""
    site = sites[policy.homes]
    names = sorted({server.model for server in site.servers})
    coming, failing = asks(names, SHAPE, seed), outages(site.hosts, SHAPE, seed)
    return played(site, policy, coming, failing, popularity(names, seed), warm_up_s=0.0)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_request_ends_the_same_each_time(sites: dict[int, Site], policy: Policy) -> None:
    """No host holds more than it has (the hosts say so), all that were asked ended, and a seed says it all."""
    found = outcome_of(sites, policy)
    coming = asks(sorted({s.model for s in sites[1].servers}), SHAPE, 1)
    assert found.asked == sum(found.said.values()) == len(coming)
    assert set(found.said) <= {"", "start_timeout", "server_failed", "server_stopped", "upstream_ended", "no_room"}
    assert 0 < found.at_once <= found.answered == len(found.waits)
    assert outcome_of(sites, policy) == found
    assert bool(found.swaps) != policy.static
    assert bool(found.out_of_memory) <= bool(policy.counts)


def test_hosts_that_fail_are_felt(sites: dict[int, Site]) -> None:
    """Requests in a host that goes away end with it, and others are not answered by it; without failures all are."""
    site = sites[1]
    first = site.of_host(site.hosts[0])[0]
    coming = [Ask(10.0, first.model, 1.0), Ask(40.0, first.model, 20.0), Ask(55.0, first.model, 1.0)]
    for failing, said in (
        ([], {"": 3}),
        ([Outage(first.host, 50.0, 300.0)], {"": 1, "start_timeout": 1, "upstream_ended": 1}),
    ):
        found = played(site, POLICIES["launch"], coming, failing, (), warm_up_s=0.0)
        assert found.said == said
    assert (found.loads, found.at_once) == (2, 0)


def test_a_host_that_holds_too_much_is_found(sites: dict[int, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runtime made no room, the simulation says so and gives no figures."""

    async def no_look(self: Room, runner: object) -> bool:
        return True

    monkeypatch.setattr(Room, "_made", no_look)
    with pytest.raises(AssertionError, match="more memory than h00"):
        outcome_of(sites, POLICIES["launch"])


def test_counts_and_seeds(sites: dict[int, Site]) -> None:
    """As many as always fit are fewer than those that fit on average; another seed asks for something else."""
    for host in sites[1].hosts:
        assert 1 <= safe_count(sites[1], host) <= usual_count(sites[1], host) < 10
    names = [f"m{i}" for i in range(30)]
    assert asks(names, SHAPE, 1) != asks(names, SHAPE, 2)
    assert popularity(names, 1) != popularity(names, 2)
    counted = [ask.model for ask in asks(names, Shape(seconds=3000.0), 1)]
    most, *_, least = popularity(names, 1)
    assert counted.count(most) > 10 * counted.count(least) > 0
