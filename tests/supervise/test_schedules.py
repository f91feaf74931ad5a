"""Every schedule that hypothesis finds of requests, crashes, stops and reloads: the promises of the supervisor hold."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.ir.fleet import DeviceBudget, DeviceNeed
from launcher.ir.live import UnavailableError
from launcher.supervise import Supervisor
from launcher.supervise.scheduler import Resident, can_ever_fit, choose_victims
from tests.supervise.conftest import SUPERVISOR, children, fake, manifest
from tests.supervise.simulated import CARD, Simulated, SimulatedLoop, World

NAMES = ("hot", "late", "a", "b", "c", "w1", "w2", "w3")
LONGEST_S = 400.0

fates = st.tuples(
    st.sampled_from([True, True, True, False]), st.sampled_from([0.01, 0.5, 5]), st.sampled_from([0.0, 0.3, 9])
)
moment = st.sampled_from([0.0, 0.001, 0.01, 0.2, 1, 3, 11])
name = st.sampled_from(NAMES)
deed = st.one_of(
    st.tuples(st.just("ask"), name, st.sampled_from([0.2, 5, 60]), st.sampled_from([0.0, 0.4, 20])),
    st.tuples(st.just("ask"), name, st.sampled_from([0.2, 5, 60]), st.sampled_from([0.0, 0.4, 20])),
    st.tuples(st.just("leave"), name, st.sampled_from([0.001, 0.3, 3])),
    st.tuples(st.just("crash"), name),
    st.tuples(st.just("stop"), name),
    st.tuples(st.just("reload"), st.lists(name, max_size=2, unique=True), st.booleans()),
)
schedules = st.lists(st.tuples(moment, deed), max_size=14)


lags = st.sampled_from([0.0, 0.01, 0.7, 4.0, 9.0])
"""Seconds for which a driver counts what an ended process held."""


def need(size: int, *devices: str) -> tuple[DeviceNeed, ...]:
    """So much RAM, and as much of each of `devices`."""
    return tuple(
        DeviceNeed(device=device, committed_bytes=size, peak_bytes=size, file_bytes=0) for device in ("ram", *devices)
    )


def fleet(note: str = "") -> Any:
    """Two that are always on, three that take turns on a device, three on demand: they do not fit all together."""
    shared: dict[str, Any] = {"note": note, "stop_grace_s": 2, "fatal": False}
    return manifest(
        fake("hot", 1, memory=need(200), **shared),
        fake("late", 2, memory=need(100), after=("hot",), **shared),
        *(fake(n, 3, exclusive="device", default=n == "a", memory=need(200, CARD), **shared) for n in "abc"),
        *(fake(n, 4, start="demand", idle_timeout_s=8, memory=need(300), **shared) for n in ("w1", "w2", "w3")),
        devices=(
            DeviceBudget(name="ram", kind="ram", capacity_bytes=1000, budget_bytes=1000),
            DeviceBudget(name=CARD, kind="gpu", capacity_bytes=300, budget_bytes=300),
        ),
        supervisor=msgspec.structs.replace(SUPERVISOR, health_interval_s=1e9, drain_timeout_s=3),
    )


class Schedule:
    """One schedule, carried out on a supervisor whose processes are simulated."""

    def __init__(self, state_dir: Path, world: World) -> None:
        self.world = world
        self.supervisor = Supervisor(fleet(), state_dir=state_dir, owner=children(state_dir), emit=lambda _: None)
        runners = self.supervisor._runners
        for key, runner in tuple(runners.items()):
            runners[key] = Simulated(runner.spec, runner._shared, world)
        self.supervisor._waker.room._available = dict
        self.supervisor._waker.room._cards = world.cards
        self.answers: list[str] = []
        self.asked = 0

    async def ask(self, who: str, timeout_s: float, busy_s: float) -> None:
        """A request, as the front makes it."""
        self.asked += 1
        loop = asyncio.get_running_loop()
        begun = loop.time()
        runner = self.supervisor._runners[who]
        try:
            lease = await self.supervisor.acquire(who, timeout_s)
        except UnavailableError as error:
            assert loop.time() - begun <= timeout_s + 1e-6
            self.answers.append(error.code)
            return
        crashed_at_once = not runner.life.alive and runner.life.since == loop.time()  # after the grant, at its moment
        assert runner.life.usable or crashed_at_once, f"the lease on {who} is of no use"
        try:
            await asyncio.sleep(busy_s)
        finally:
            lease.release(ok=True)
            lease.release(ok=True)  # of no effect
        self.answers.append("")

    async def leave(self, who: str, after_s: float) -> None:
        """A client that goes away."""
        asking = asyncio.create_task(self.ask(who, 60, 0.1))
        await asyncio.sleep(after_s)
        if asking.cancel():
            self.answers.append("left")
        await asyncio.gather(asking, return_exceptions=True)

    async def do(self, what: tuple[Any, ...]) -> None:
        """One deed, to its end."""
        match what:
            case ("ask", who, timeout_s, busy_s):
                await self.ask(who, timeout_s, busy_s)
            case ("leave", who, after_s):
                await self.leave(who, after_s)
            case ("crash", who):
                runner = self.supervisor._runners[who]
                assert isinstance(runner, Simulated)
                runner.crash()
            case ("stop", who):
                await self.supervisor.stop((who,))
            case ("reload", names, changed):
                async with self.turn:
                    await self.supervisor.reload(fleet("new" if changed else ""), tuple(names))

    async def run(self, schedule: list[tuple[float, tuple[Any, ...]]]) -> None:
        """Everything at its moment; then everything is stopped. Whatever was begun comes to its end."""
        self.turn = asyncio.Lock()  # reloads wait for each other, as the runtime has them do
        starting = asyncio.create_task(self.supervisor.start())
        running = []
        for pause_s, what in schedule:
            await asyncio.sleep(pause_s)
            if what[0] == "reload" and not starting.done():
                continue  # the runtime refuses it
            running.append(asyncio.create_task(self.do(what)))
        async with asyncio.timeout(LONGEST_S):
            await asyncio.gather(starting, *running)
        async with asyncio.timeout(60):
            await self.supervisor.stop_all("test")
        assert not any(r.exists for r in self.world.runners)
        assert len(self.answers) == self.asked


def play(
    state_dir: Path,
    schedule: list[tuple[float, tuple[Any, ...]]],
    fate: list[tuple[bool, float, float]],
    lag_s: float = 0.0,
) -> Schedule:
    """Carry out `schedule` in simulated time."""
    endless: Iterator[tuple[bool, float, float]] = itertools.chain(fate, itertools.repeat((True, 0.1, 0.1)))
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> Schedule:
            broken: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
            made = Schedule(state_dir, World(1000, endless, 300, lag_s))
            await made.run(schedule)
            await asyncio.sleep(0)  # what was cancelled ends
            left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            assert left == []
            assert broken == []  # timers raise into the loop
            assert made.world.broken == []
            return made

        return runner.run(main())


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory; nothing is written there."""
    directory = tmp_path_factory.mktemp("state")
    (directory / "servers").mkdir()
    return directory


@settings(
    max_examples=int(os.environ.get("LAUNCH_SCHEDULES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(schedule=schedules, fate=st.lists(fates, max_size=10), lag_s=lags)
@example(schedule=[(0.0, ("ask", "w1", 60, 20)), (0.0, ("ask", "w2", 60, 0.4))], fate=[], lag_s=0.0)
@example(schedule=[(1, ("ask", "b", 60, 0.4)), (0.001, ("reload", [], True))], fate=[], lag_s=0.0)
@example(schedule=[(1, ("reload", ["b", "c"], False)), (0.2, ("ask", "a", 60, 0.4))], fate=[], lag_s=0.0)
@example(
    schedule=[
        *[(0.0, ("ask", n, 0.2, 0.0)) for n in "ca"],
        *[(0.2, ("ask", "c", 0.2, 0.4)), (0.0, ("ask", "b", 0.2, 0.0))],
    ],
    fate=[*[(True, 0.01, 0.0)] * 4, (False, 0.01, 0.0)],
    lag_s=0.7,
)
@example(schedule=[(0.2, ("ask", "b", 5, 0.0)), (0.2, ("crash", "b"))], fate=[], lag_s=0.0)
@example(schedule=[(1, ("leave", "b", 0.2)), (0.0, ("reload", ["w1", "w2"], False))], fate=[], lag_s=0.0)
@example(schedule=[(0.0, ("ask", n, 60, 0.4)) for n in "bcabca"], fate=[(True, 5, 9)] * 5, lag_s=4.0)
@example(schedule=[(0.0, ("ask", "w1", 60, 20)), (0.0, ("ask", "w2", 60, 20))], fate=[(True, 5, 0.0)] * 6, lag_s=0.0)
@example(schedule=[(1, ("ask", n, 60, 20)) for n in ("w1", "w2", "w3")], fate=[], lag_s=0.0)
@example(
    schedule=[(3, ("ask", "w1", 60, 20)), (3, ("crash", "hot")), (0.0, ("ask", "w2", 60, 20))],
    fate=[(True, 0.01, 0.0)] * 9,
    lag_s=9.0,
)
def test_promises_hold_in_every_schedule(
    somewhere: Path, schedule: list[tuple[float, tuple[Any, ...]]], fate: list[tuple[bool, float, float]], lag_s: float
) -> None:
    """No two owners of a device, never over the budget, no busy or pinned victim; every waiter answered; an end.

    Nobody is placed on a card whose driver may yet give back what the last one held.
    """
    play(somewhere, schedule, fate, lag_s)


def test_a_schedule_swaps_evicts_and_answers(somewhere: Path) -> None:
    """The simulation is no empty promise: in a plain schedule there are swaps, evictions and answers."""
    done = play(somewhere, [(1, ("ask", n, 60, 0.1)) for n in ("b", "w1", "w2", "c", "w3")], [])
    assert done.answers == [""] * 5
    assert done.world.spawned == 9  # the default of the group comes back by itself


residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        needs=st.dictionaries(st.sampled_from(["ram", "cuda0"]), st.integers(0, 50), min_size=1),
        idle_s=st.floats(0, 1e5),
        reload_s=st.floats(0, 600),
        busy=st.booleans(),
        pinned=st.booleans(),
    ),
    max_size=7,
    unique_by=lambda r: r.name,
)
sizes = st.dictionaries(st.sampled_from(["ram", "cuda0"]), st.integers(0, 100))


@settings(deadline=None)
@given(target=sizes, running=residents, budget=sizes)
def test_the_least_valuable_go(target: dict[str, int], running: list[Resident], budget: dict[str, int]) -> None:
    """Nobody goes in whose place a single one of less value would have been enough; never fits means never."""
    victims = choose_victims(target, running, budget)
    if not can_ever_fit(target, running, budget):
        assert victims is None
    if not victims:
        return
    by_name = {r.name: r for r in running}
    lacking = {
        d: size + sum(r.needs.get(d, 0) for r in running) - budget[d] for d, size in target.items() if d in budget
    }
    alone = [
        r
        for r in running
        if not r.busy and not r.pinned and all(r.needs.get(d, 0) >= short for d, short in lacking.items())
    ]
    if len(victims) == 1 and alone:
        assert by_name[victims[0]].keep_value <= max(r.keep_value for r in alone)


@pytest.mark.parametrize(
    ("idle_s", "reload_s", "goes"),
    [((100, 10), (1, 1), "a"), ((100, 10), (60, 1), "b"), ((100, 100), (2, 1), "b"), ((0, 0), (1, 1), "a")],
)
def test_the_oldest_goes_unless_it_is_dear(
    idle_s: tuple[float, float], reload_s: tuple[float, float], goes: str
) -> None:
    """Least recently used, weighed by what it costs to reload."""
    running = [
        Resident(name=n, needs={"ram": 10}, idle_s=idle, reload_s=reload)
        for n, idle, reload in zip("ab", idle_s, reload_s, strict=True)
    ]
    assert choose_victims({"ram": 10}, running, {"ram": 20}) == (goes,)
