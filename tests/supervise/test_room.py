"""Room for servers of several machines, and in which order those are served who wait for one start; simulated time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from launcher.ir.fleet import DeviceNeed
from launcher.supervise.lifecycle import FAILED_PAUSE_S
from launcher.supervise.runner import SharedContext
from launcher.supervise.spec import process_specs
from launcher.supervise.waker import Waker
from tests.supervise.conftest import fake, manifest
from tests.supervise.simulated import Simulated, SimulatedLoop, World

LOAD_S = 1.0
END_S = 20.0
BUDGETS = {"one/ram": 100, "two/ram": 100}


def on(device: str, name: str) -> Any:
    """A server on demand that fills a device."""
    need = DeviceNeed(device=device, committed_bytes=100, peak_bytes=100, file_bytes=0)
    return fake(name, 1, start="demand", memory=(need,), stop_grace_s=60, stall_timeout_s=0)


def played(
    work: Callable[[Waker], Awaitable[None]], *units: Any, fates: tuple[tuple[bool, float, float], ...] = ()
) -> None:
    """`work` on a runtime of `units`, whose first processes have these fates, and whose ends take long."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> None:
            shared = SharedContext(
                deployment="", input_digest="", state_dir=Path(), owner=cast("Any", None), emit=lambda _: None
            )
            world = World(200, itertools.chain(fates, itertools.repeat((True, LOAD_S, END_S))))
            world.check = lambda: None  # type: ignore[method-assign] # which knows one device
            specs = process_specs(manifest(*units))
            await work(Waker({n: Simulated(spec, shared, world) for n, spec in specs.items()}, BUDGETS, 60, dict))

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
