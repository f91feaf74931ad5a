"""Servers on demand: single flight, exclusive groups, room, idleness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ir.fleet import DeviceNeed
from launcher.ir.live import UnavailableError
from launcher.supervise import events
from launcher.supervise.scheduler import Resident, choose_victims
from tests.supervise.conftest import becomes, fake, real, wake

FreePort = Callable[[], int]


def need(size: int) -> tuple[DeviceNeed, ...]:
    """So much RAM."""
    return (DeviceNeed(device="ram", committed_bytes=size, peak_bytes=size, file_bytes=0),)


async def test_one_start_serves_many_waiters(fleet: Any, free_port: FreePort) -> None:
    """Eight wakes at once make one process; the server is ready for all."""
    supervisor, watcher = fleet(fake("warm", free_port(), start="demand"))
    await supervisor.start()
    assert supervisor.state("warm") == "stopped"
    await asyncio.gather(*(wake(supervisor, "warm", 10) for _ in range(8)))
    assert supervisor.state("warm") == "ready"
    assert len(watcher.of(events.ServerStarting)) == 1


async def test_a_wake_says_why_it_cannot(fleet: Any, free_port: FreePort) -> None:
    """Each reason has its code: unknown, failed, too slow, no room."""
    supervisor, _ = fleet(
        fake("bad", free_port(), "exit-1", start="demand"),
        fake("slow", free_port(), "hang-loading", start="demand"),
        fake("huge", free_port(), start="demand", memory=need(2000)),
    )
    await supervisor.start()
    for name, code in (
        ("nobody", "unknown_server"),
        ("bad", "server_failed"),
        ("slow", "start_timeout"),
        ("huge", "no_room"),
    ):
        with pytest.raises(UnavailableError) as caught:
            await supervisor.acquire(name, 0.5 if name == "slow" else 20)
        assert caught.value.code == code


async def test_nothing_is_started_for_nobody(fleet: Any, free_port: FreePort) -> None:
    """A waiter leaves while the start is still queued behind a drain: nothing is spawned, the other lives on."""
    supervisor, watcher = fleet(
        fake("a", free_port(), start="demand", exclusive="g", min_stay_s=0),
        fake("b", free_port(), start="demand", exclusive="g"),
    )
    await supervisor.start()
    await wake(supervisor, "a", 10)
    held_a = supervisor.try_lease("a")
    waiting = asyncio.create_task(wake(supervisor, "b", 10))
    await becomes(supervisor, "a", "stopping")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await becomes(supervisor, "a", "ready")
    held_a.release(ok=True)
    assert watcher.of(events.ServerStarting, "b") == []


async def test_an_exclusive_group_runs_one_member_and_drains_it(fleet: Any, free_port: FreePort) -> None:
    """Its default starts; a wake of the other waits for the request in flight, then swaps, on the same port."""
    port = free_port()
    supervisor, watcher = fleet(
        fake("a", port, exclusive="g"),
        fake("b", port, exclusive="g", default=True, min_stay_s=0),
    )
    await supervisor.start()
    assert (supervisor.state("a"), supervisor.state("b")) == ("stopped", "ready")
    held_b = supervisor.try_lease("b")
    waking = asyncio.create_task(wake(supervisor, "a", 10))
    await becomes(supervisor, "b", "stopping")
    await asyncio.sleep(0.2)
    assert (supervisor.state("b"), watcher.of(events.ServerStopping)) == ("stopping", [])
    held_b.release(ok=True)
    await waking
    assert (supervisor.state("a"), supervisor.state("b")) == ("ready", "stopped")
    assert supervisor.status().ready


async def test_a_failed_swap_brings_the_previous_one_back(fleet: Any, free_port: FreePort) -> None:
    """The other member cannot start: an error, and the one that was running runs again."""
    supervisor, watcher = fleet(
        fake("good", free_port(), exclusive="g", default=True), fake("bad", free_port(), "exit-1", exclusive="g")
    )
    await supervisor.start()
    with pytest.raises(UnavailableError, match="nonsense"):
        await supervisor.acquire("bad", 10)
    await watcher.until(events.ServerReady, "good", 2)
    assert supervisor.state("good") == "ready"


async def test_competing_wakes_of_a_group_are_all_served(fleet: Any, free_port: FreePort) -> None:
    """Two models take turns under requests that arrive together: nobody starves, never two processes at once."""
    port = free_port()
    supervisor, _ = fleet(
        fake("a", port, exclusive="g", start="demand"), fake("b", port, exclusive="g", start="demand")
    )
    await supervisor.start()
    served = []

    async def ask(name: str) -> None:
        async with supervisor.lease(name, 20):
            alive = [r.name for r in supervisor._runners.values() if r.life.alive]
            assert alive == [name]
            await asyncio.sleep(0.01)
            served.append(name)

    await asyncio.gather(*(ask(name) for name in "abababab"))
    assert sorted(served) == list("aaaabbbb")


async def test_an_idle_server_is_stopped_and_wakes_again(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """WARM: gone after its idle time, not while a request is in flight; the next request starts it."""
    supervisor, watcher = fleet(
        real("warm", free_port(), llama_server, tiny_models("llama"), start="demand", idle_timeout_s=0.3)
    )
    await supervisor.start()
    await wake(supervisor, "warm", 10)
    held_warm = supervisor.try_lease("warm")
    await asyncio.sleep(0.6)
    assert supervisor.state("warm") == "ready"
    held_warm.release(ok=True)
    assert (await watcher.until(events.ServerStopping, "warm")).why == "idle"
    await watcher.until(events.ServerStopped, "warm")
    await wake(supervisor, "warm", 10)
    assert supervisor.state("warm") == "ready"


async def test_room_is_made_by_the_least_recently_used(fleet: Any, free_port: FreePort) -> None:
    """A third server does not fit beside two: the one that was used longest ago goes, a busy one never."""
    supervisor, watcher = fleet(
        *(fake(name, free_port(), start="demand", memory=need(400)) for name in ("a", "b", "c", "d"))
    )
    await supervisor.start()
    await wake(supervisor, "a", 10)
    await wake(supervisor, "b", 10)
    await wake(supervisor, "c", 10)
    assert [supervisor.state(n) for n in "abc"] == ["stopped", "ready", "ready"]
    assert watcher.of(events.ServerStopping, "a")[0].why == "evicted"
    (made,) = watcher.of(events.RoomMade, "c")
    assert (made.going, set(made.weighed)) == (("a",), {"a"})
    assert made.needs["ram"] > 0
    assert set(made.weighed["a"]) == {"idle_s", "reload_s", "score"}
    held_b = supervisor.try_lease("b")
    await asyncio.sleep(0.1)
    await wake(supervisor, "d", 10)
    assert [supervisor.state(n) for n in "bcd"] == ["ready", "stopped", "ready"]
    held_d = supervisor.try_lease("d")
    with pytest.raises(UnavailableError, match="no room"):
        await supervisor.acquire("a", 0.2)
    waiting = asyncio.create_task(wake(supervisor, "a", 10))
    await asyncio.sleep(0.1)
    held_d.release(ok=True)
    await waiting
    assert [supervisor.state(n) for n in "abd"] == ["ready", "ready", "stopped"]
    held_b.release(ok=True)


residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        needs=st.dictionaries(st.sampled_from(["ram", "cuda0"]), st.integers(0, 50)),
        idle_s=st.integers(0, 5).map(float),
        reload_s=st.sampled_from([0.1, 1.0, 60.0]),
        busy=st.booleans(),
        pinned=st.booleans(),
    ),
    max_size=7,
)
devices = st.dictionaries(st.sampled_from(["ram", "cuda0"]), st.integers(0, 100))


@settings(deadline=None)
@given(target=devices, running=residents, budget=devices)
def test_victims_are_enough_needed_and_allowed(
    target: dict[str, int], running: list[Resident], budget: dict[str, int]
) -> None:
    """What is stopped makes room; never a busy or pinned one; nobody in vain; None only when nothing helps."""

    def fits(stopped: set[str]) -> bool:
        left = [r for r in running if r.name not in stopped]
        return all(
            target.get(d, 0) + sum(r.needs.get(d, 0) for r in left) <= size for d, size in budget.items() if d in target
        )

    movable = {r.name for r in running if not r.busy and not r.pinned}
    victims = choose_victims(target, running, budget)
    if victims is None:
        assert not fits(movable)
        return
    assert set(victims) <= movable
    assert fits(set(victims))
    assert all(not fits(set(victims) - {name}) for name in victims)


async def test_what_is_unloaded_goes_after_its_answer_and_comes_when_it_is_asked_for(
    fleet: Any, free_port: FreePort
) -> None:
    """Drained first; what is always on stays, and says so. How long a start takes is known after the first."""
    supervisor, watcher = fleet(fake("a", free_port(), start="demand"), fake("hot", free_port()))
    await supervisor.start()
    assert supervisor.left_s("a") is None
    await supervisor.unload("a")  # nothing to do
    held = await supervisor.acquire("a", 10)
    going = asyncio.create_task(supervisor.unload("a"))
    await becomes(supervisor, "a", "stopping")
    await asyncio.sleep(0.1)
    assert (going.done(), supervisor.state("a")) == (False, "stopping")
    held.release(ok=True)
    await going
    assert supervisor.state("a") == "stopped"
    left_s = supervisor.left_s("a")
    assert left_s is not None
    assert left_s > 0
    await wake(supervisor, "a", 10)
    assert [event.why for event in watcher.of(events.ServerStopping)] == ["unloaded"]
    for name, code in (("hot", "always_on"), ("nobody", "unknown_server")):
        with pytest.raises(UnavailableError) as caught:
            await supervisor.unload(name)
        assert caught.value.code == code
