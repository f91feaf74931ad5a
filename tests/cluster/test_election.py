"""Who leads: real elections over a simulated network and clock, in which calls come late, twice or never."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.supervise.scheduled import SchedulerError
from launcher.supervise.scheduled.election import CALL_SHARE, Election
from launcher.supervise.scheduled.lease import (
    Claim,
    Observation,
    address_of,
    claim_of,
    identity,
    may_take,
    observed,
    taken,
)
from tests.supervise.simulated import SimulatedLoop

LASTS_S = 15.0
LIMIT_S = LASTS_S * CALL_SHARE


class Network:
    """The lease, and how calls of several fronts come to it. A call is given up after its limit, here and there."""

    def __init__(self, random: Random, share_lost: float, slow: float = 1.2) -> None:
        """`slow`: how much of its limit a call may take to come, and its answer again."""
        self.random = random
        self.slow = slow
        self.share_lost = share_lost
        self.version = 1
        self.lease: dict[str, Any] = {"metadata": {"resourceVersion": "1"}}
        self.cut: set[str] = set()

    async def call(self, who: str, method: str, body: Any) -> dict[str, Any]:
        """As `ApiServer.ask`."""
        there_s, back_s = (self.random.random() * LIMIT_S * self.slow for _ in range(2))
        lost = who in self.cut or self.random.random() < self.share_lost
        try:
            async with asyncio.timeout(LIMIT_S):
                if lost and self.random.random() < 0.5:
                    await asyncio.sleep(3600)
                await asyncio.sleep(there_s)
                answer = self.done(method, body)
                await asyncio.sleep(3600 if lost else back_s)
                return answer
        except TimeoutError:
            if method == "PUT" and self.random.random() < 0.5:
                # the server had it when we gave up, and has its own limit
                late_s = self.random.random() * LIMIT_S
                asyncio.get_running_loop().call_later(late_s, self.done_late, method, body)
            raise SchedulerError(0, "no answer") from None

    def done_late(self, method: str, body: Any) -> None:
        """What nobody hears of."""
        with contextlib.suppress(SchedulerError):
            self.done(method, body)

    def done(self, method: str, body: Any) -> dict[str, Any]:
        """The API server's part."""
        if method == "PUT":
            if body["metadata"]["resourceVersion"] != str(self.version):
                raise SchedulerError(409, "conflict")
            self.version += 1
            self.lease = {**body, "metadata": {"resourceVersion": str(self.version)}}
        return copy.deepcopy(self.lease)


class Api:
    """One front's way to it."""

    def __init__(self, network: Network, who: str) -> None:
        self.network = network
        self.who = who

    async def ask(self, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """As `ApiServer.ask`."""
        return await self.network.call(self.who, method, body)


async def lived(network: Network, for_s: float) -> list[str]:  # noqa: C901 - one story
    """Three fronts for a while, each started again when it lost; who led, one after another.

    Nobody leads while another does, and no change that a leader made comes when another leads.
    """
    loop = asyncio.get_running_loop()
    current: dict[str, Election] = {}
    led: list[str] = []

    def others_lead(who: Election) -> bool:
        return any(e.leads for e in current.values() if e is not who)

    async def front(name: str) -> None:
        run = 0
        while True:
            run += 1
            election = Election(Api(network, name), "lease", f"10.0.0.1:1/{name}/{run}", LASTS_S)  # type: ignore[arg-type]
            current[name] = election
            running = asyncio.create_task(election.run())
            changes = asyncio.create_task(change(election))
            await running
            changes.cancel()

    def lands(election: Election) -> None:
        assert not others_lead(election), "a change of a former leader came"

    async def change(election: Election) -> None:
        await election.elected.wait()
        led.append(election.identity)
        while True:
            if election.leads:
                assert not others_lead(election), "two lead"
                loop.call_later(network.random.random() * 2 * LIMIT_S, checked, election)
            await asyncio.sleep(0.2 + network.random.random())

    wrong: list[AssertionError] = []

    def checked(election: Election) -> None:
        try:
            lands(election)
        except AssertionError as error:
            wrong.append(error)

    async def partitions() -> None:
        while True:
            await asyncio.sleep(network.random.random() * 3 * LASTS_S)
            network.cut = {name for name in "abc" if network.random.random() < 0.4}

    tasks = [asyncio.create_task(front(name)) for name in "abc"] + [asyncio.create_task(partitions())]
    await asyncio.sleep(for_s)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, AssertionError):
            raise result
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # type: ignore[operator]
        task.cancel()
    if wrong:
        raise wrong[0]
    return led


@settings(max_examples=5)
@example(1, 0.0, 0.05)  # shows holders that act until the very end of their lease
@given(st.integers(0, 2**32), st.sampled_from((0.0, 0.1, 0.5)), st.sampled_from((0.05, 0.4, 1.2)))
def test_never_two(seed: int, share_lost: float, slow: float) -> None:
    """Ten minutes of a bad network."""
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(lived(Network(Random(seed), share_lost, slow), 600))  # noqa: S311
    finally:
        loop.close()


def test_somebody_leads() -> None:
    """On a network that is only slow, somebody leads at once; a holder that is cut off is followed by another."""
    loop = SimulatedLoop()

    async def run() -> None:
        network = Network(Random(1), 0.0, slow=0.4)  # noqa: S311
        first, second = (Election(Api(network, n), "lease", f"{n}:1/{n}/1", LASTS_S) for n in "ab")  # type: ignore[arg-type]
        running = [asyncio.create_task(first.run())]
        await first.elected.wait()
        running.append(asyncio.create_task(second.run()))
        await asyncio.sleep(10 * LASTS_S)
        assert first.leads
        assert not second.elected.is_set()
        assert second.leader() == ("a", 1)
        network.cut = {"a"}
        await second.elected.wait()
        assert first.lost.is_set()
        assert not first.leads
        network.cut = set()
        await second.give_back()
        assert not second.leads
        assert claim_of(network.lease).holder in ("", second.identity)  # said, or left to run out
        await asyncio.gather(*running)

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


@given(st.text(max_size=5), st.floats(0, 100), st.floats(0, 100), st.floats(0, 60))
def test_when_it_may_be_taken(holder: str, since: float, later: float, lasts: float) -> None:
    """At once where nobody has it; else only after nothing changed for as long as it lasts, and we think it does."""
    claim = Claim(holder=holder, lasts_s=lasts, version="1")
    sight = observed(Observation(claim, since), claim, since + later)
    assert sight.since == since
    assert may_take(sight, since + later, 15) == (not holder or (since + later) - since > max(15, lasts))
    renewed = observed(sight, Claim(holder=holder, lasts_s=lasts, version="2"), since + later)
    assert renewed.since == since + later


def test_what_is_written() -> None:
    """A lease changes hands, and counts it; whoever has it keeps the time since when; it says where its holder is."""
    empty: dict[str, Any] = {"metadata": {"resourceVersion": "7"}}
    first = taken(empty, "a", 15, "t1")
    assert first["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "renewTime": "t1",
        "acquireTime": "t1",
        "leaseTransitions": 1,
    }
    again = taken(first, "a", 15, "t2")["spec"]
    assert (again["acquireTime"], again["renewTime"], again["leaseTransitions"]) == ("t1", "t2", 1)
    assert taken(first, "b", 15, "t3")["spec"]["leaseTransitions"] == 2
    assert taken(first, "", 1, "t3")["spec"]["leaseTransitions"] == 1
    assert claim_of(first) == Claim(holder="a", lasts_s=15, transitions=1, version="7")


@pytest.mark.parametrize(
    ("holder", "leader"),
    [
        ("10.0.0.1:1/front-1/aa", None),
        ("10.0.0.1:1/front-1/older", None),  # a front that passed on to that one would call itself, for ever
        ("10.0.0.2:1/front-2/bb", ("10.0.0.2", 1)),
        ("", None),
    ],
)
def test_nobody_passes_on_to_himself(holder: str, leader: tuple[str, int] | None) -> None:
    """Who leads is another front, never an earlier run of this one."""
    network = Network(Random(1), 0.0)  # noqa: S311
    network.lease = taken(network.lease, holder, LASTS_S, "t1")
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> tuple[str, int] | None:
            election = Election(Api(network, "a"), "lease", "10.0.0.1:1/front-1/aa", LASTS_S)  # type: ignore[arg-type]
            while election._sight is None:
                with contextlib.suppress(SchedulerError):  # an answer is late now and then
                    await election._look(0.0)
            return election.leader()

        assert runner.run(main()) == leader


@pytest.mark.parametrize(
    ("holder", "address"),
    [
        (identity("10.1.2.3:8000", "front-1", "ab"), ("10.1.2.3", 8000)),
        (identity("[fd00::1]:8000", "front-1", "ab"), ("fd00::1", 8000)),
        ("", None),
        ("somebody", None),
        ("10.1.2.3:x/a/b", None),
        ("10.1.2.3:99999/a/b", None),
    ],
)
def test_where_the_holder_is(holder: str, address: tuple[str, int] | None) -> None:
    """As it wrote it; what another program wrote is no address."""
    assert address_of(holder) == address
