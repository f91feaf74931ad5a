"""Room for servers of several machines and on cards, and in which order those are served who wait for one start."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from launcher.hardware import cards
from launcher.ir.fleet import DeviceNeed
from launcher.ir.host import Card, HostGpu
from launcher.ir.live import UnavailableError
from launcher.supervise.lifecycle import FAILED_PAUSE_S
from launcher.supervise.measuring import Measurer
from launcher.supervise.runner import SharedContext
from launcher.supervise.scheduler import GIVE_BACK_S
from launcher.supervise.spec import process_specs
from launcher.supervise.waker import Waker
from tests.supervise.conftest import fake, manifest
from tests.supervise.simulated import CARD, Simulated, SimulatedLoop, World

LOAD_S = 1.0
END_S = 20.0
BUDGETS = {"one/ram": 100, "two/ram": 100}


def on(device: str, name: str) -> Any:
    """A server on demand that fills a device."""
    need = DeviceNeed(device=device, committed_bytes=100, peak_bytes=100, file_bytes=0)
    return fake(name, 1, start="demand", memory=(need,), stop_grace_s=60, stall_timeout_s=0)


def played(
    work: Callable[[Waker], Awaitable[None]],
    *units: Any,
    fates: tuple[tuple[bool, float, float], ...] = (),
    vram: int = 0,
    lag_s: float = 0.0,
) -> None:
    """`work` on a runtime of `units`, whose first processes have these fates, and whose ends take long.

    `vram` of `CARD`, whose driver gives back `lag_s` after an end.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> None:
            shared = SharedContext(
                deployment="", input_digest="", state_dir=Path(), owner=cast("Any", None), emit=lambda _: None
            )
            world = World(200, itertools.chain(fates, itertools.repeat((True, LOAD_S, END_S))), vram, lag_s)
            world.check = lambda: None  # type: ignore[method-assign] # which knows one device
            runners = {n: Simulated(spec, shared, world) for n, spec in process_specs(manifest(*units)).items()}
            await work(Waker(runners, BUDGETS, 60, dict, world.cards if vram else None))

        runner.run(main())


def test_machines_do_not_wait_for_each_other() -> None:
    """While one machine waits for the end of who has to go, another one starts what it has room for."""
    took: dict[str, float] = {}

    async def work(waker: Waker) -> None:
        loop = asyncio.get_running_loop()

        async def ask(name: str) -> None:
            begun = loop.time()
            (await waker.acquire(name, 120)).release(ok=True)
            took[name] = loop.time() - begun

        await ask("a")
        await asyncio.gather(ask("b"), ask("c"))

    played(work, on("one/ram", "a"), on("one/ram", "b"), on("two/ram", "c"), on("two/ram", "d"))
    assert took["b"] >= END_S + LOAD_S
    assert took["c"] < 2 * LOAD_S


def test_first_come_first_served() -> None:
    """Those who wait for one start are served in the order in which they came."""
    served: list[int] = []

    async def work(waker: Waker) -> None:
        async def ask(number: int) -> None:
            lease = await waker.acquire("a", 120)
            served.append(number)
            lease.release(ok=True)

        await asyncio.gather(*(ask(number) for number in range(64)))

    played(work, on("one/ram", "a"))
    assert served == list(range(64))


def test_a_default_that_failed_is_tried_again() -> None:
    """By a request after a pause, as any member of its exclusive group: its host may have been away for a while."""
    states = []

    async def work(waker: Waker) -> None:
        runner = waker._runners["a"]
        runner.start()
        await runner.until("failed")
        for pause_s in (FAILED_PAUSE_S - 1, 2):
            await asyncio.sleep(pause_s)
            states.append(runner.routing_state)
        (await waker.acquire("a", 10)).release(ok=True)
        states.append(runner.routing_state)

    default = msgspec.structs.replace(on("one/ram", "a"), start="boot", exclusive="card", default=True)
    played(work, default, fates=((False, 0.1, 0.1),))
    assert states == ["failed", "stopped", "ready"]


@pytest.mark.parametrize(
    ("vram", "lag_s", "waits_s"),
    [(100, 0.0, 0.0), (100, 0.7, 0.7), (100, 60.0, GIVE_BACK_S), (90, 60.0, 0.0), (300, 60.0, 0.0)],
    ids=["at once", "late", "never", "a driver that counts another memory", "room beside it"],
)
def test_a_swap_waits_for_what_a_card_gives_back(vram: int, lag_s: float, waits_s: float) -> None:
    """While it lacks it and the driver may give it back, and no longer; a first start waits for nobody."""
    took: dict[str, float] = {}

    async def work(waker: Waker) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1)
        for name in ("a", "b"):
            begun = loop.time()
            (await waker.acquire(name, 120)).release(ok=True)
            took[name] = loop.time() - begun

    units = [msgspec.structs.replace(on(CARD, name), exclusive="card", min_stay_s=0.0) for name in "ab"]
    played(work, *units, fates=((True, LOAD_S, 0.0),) * 2, vram=vram, lag_s=lag_s)
    assert took["a"] == pytest.approx(LOAD_S)
    assert took["b"] == pytest.approx(LOAD_S + waits_s, abs=0.2)


def test_who_crashes_on_a_card_again_and_again_makes_nobody_wait_for_ever() -> None:
    """What is waited for is bounded, however often somebody there ends meanwhile."""
    took: list[float] = []

    async def work(waker: Waker) -> None:
        loop = asyncio.get_running_loop()
        for name in ("small", "a"):
            (await waker.acquire(name, 120)).release(ok=True)
        for after_s in (2, 4):
            loop.call_later(after_s, cast("Any", waker._runners["small"]).crash)
        begun = loop.time()
        (await waker.acquire("b", 120)).release(ok=True)
        took.append(loop.time() - begun)

    units = [msgspec.structs.replace(on(CARD, name), exclusive="card", min_stay_s=0.0) for name in "ab"]
    nothing = DeviceNeed(device=CARD, committed_bytes=0, peak_bytes=0, file_bytes=0)
    small = msgspec.structs.replace(on(CARD, "small"), memory=(nothing,))
    played(work, *units, small, fates=((True, LOAD_S, 0.0),) * 2, vram=100, lag_s=60.0)
    assert took == [pytest.approx(LOAD_S + GIVE_BACK_S, abs=0.2)]


def test_who_has_waited_too_long_for_a_card_is_told_so() -> None:
    """A client's own time ends its wait, with a typed error; the start is given up, and who had the card is back."""
    seen: list[Any] = []

    async def work(waker: Waker) -> None:
        (await waker.acquire("a", 10)).release(ok=True)
        with pytest.raises(UnavailableError) as caught:
            await waker.acquire("b", 0.5)
        seen.append(caught.value.code)
        (await waker.acquire("a", 10)).release(ok=True)
        seen.append([name for name, runner in waker._runners.items() if runner.life.alive])

    units = [msgspec.structs.replace(on(CARD, name), exclusive="card", min_stay_s=0.0) for name in "ab"]
    played(work, *units, fates=((True, LOAD_S, 0.0),) * 2, vram=100, lag_s=2.0)
    assert seen == ["start_timeout", ["a"]]


async def test_what_drivers_say_of_the_cards_of_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fleet's own names, without others' cards; a driver that hangs is neither waited for nor asked twice."""
    go_on, asked = threading.Event(), []
    sizes: dict[str, Any] = {"backend": "cuda", "model": "", "vram_bytes": 24, "free_bytes": 5}

    def hang() -> tuple[Card, ...]:
        asked.append(1)
        go_on.wait(60)
        return ()

    monkeypatch.setattr(cards, "read_cards", lambda: tuple(Card(gpu=HostGpu(name=f"cuda{n}", **sizes)) for n in (0, 1)))
    measurer = Measurer(("big",))
    assert await measurer.cards() == {"big": HostGpu(name="cuda0", **sizes)}
    monkeypatch.setattr(cards, "read_cards", hang)
    monkeypatch.setattr("launcher.supervise.measuring._DRIVER_S", 0.05)
    assert [await measurer.cards(), await measurer.cards(), asked] == [{}, {}, [1]]
    go_on.set()
    assert await Measurer(()).cards() == {}
