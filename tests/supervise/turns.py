"""Clients of models that take turns, in simulated time: who is answered when, and what the swaps take."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.supervise import Supervisor, events
from tests.supervise.conftest import SUPERVISOR, children, fake, manifest
from tests.supervise.simulated import Simulated, SimulatedLoop, World

LAST_S = 0.2
"""What the end of a process takes."""


class Client(msgspec.Struct, frozen=True):
    """Asks for `model` again and again: `busy_s` a request, `pause_s` after each."""

    model: str
    busy_s: float
    pause_s: float = 0.0


class Asked(msgspec.Struct, frozen=True):
    """One request: when it came, when its server was there for it, when it was answered."""

    model: str
    came: float
    granted: float
    ended: float


class Turns:
    """What came of `seconds` of clients."""

    def __init__(self, state_dir: Path, stays: dict[str, float | None], load_s: float) -> None:
        self.asked: list[Asked] = []
        self.swaps: list[events.Swapped] = []
        self.cut_short: list[str] = []
        """Who had to go although it was asked and had not stayed as long as it should."""
        slow: dict[str, Any] = {"start": "demand", "start_timeout_s": 1e6, "stall_timeout_s": 0}
        units = [
            fake(n, 1, exclusive="gpu", **slow, **({} if stay is None else {"min_stay_s": stay}))
            for n, stay in stays.items()
        ]
        quiet = msgspec.structs.replace(SUPERVISOR, health_interval_s=1e9, drain_timeout_s=1e6)
        unit = manifest(*units, supervisor=quiet)
        self.supervisor = Supervisor(unit, state_dir=state_dir, owner=children(state_dir), emit=self._hear)
        self.world = World(10**15, itertools.repeat((True, load_s, LAST_S)))
        for key, runner in tuple(self.supervisor._runners.items()):
            self.supervisor._runners[key] = Simulated(runner.spec, runner._shared, self.world)
        self.supervisor._waker.room._available = dict

    def _hear(self, event: Any) -> None:
        if isinstance(event, events.Swapped):
            self.swaps.append(event)

    async def ask(self, client: Client) -> None:
        """One request."""
        loop = asyncio.get_running_loop()
        came = loop.time()
        lease = await self.supervisor.acquire(client.model, 1e6)
        granted = loop.time()
        await asyncio.sleep(client.busy_s)
        lease.release(ok=True)
        self.asked.append(Asked(client.model, came, granted, loop.time()))

    async def _again_and_again(self, client: Client, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.ask(client)
            await asyncio.sleep(client.pause_s)

    async def _watch(self, until_s: float) -> None:
        """Note who begins to drain while its turn should last."""
        loop = asyncio.get_running_loop()
        due: dict[str, float] = {}
        while loop.time() < until_s:
            for runner in self.supervisor._runners.values():
                name = runner.name
                if runner.life.usable:
                    due[name] = runner.tenant(loop.time()).stay_s
                elif due.pop(name, 0.0) > 0.1:
                    self.cut_short.append(name)
            await asyncio.sleep(0.05)

    async def run(self, clients: Sequence[Client], seconds: float) -> None:
        """Have the clients ask."""
        await self.supervisor.start()
        await asyncio.gather(self._watch(seconds), *(self._again_and_again(client, seconds) for client in clients))
        await self.supervisor.stop_all("end")

    @property
    def swapping_s(self) -> float:
        """All swaps together."""
        return sum(swap.seconds for swap in self.swaps)

    def longest_s(self, model: str) -> float:
        """The longest that a request for it waited for its server."""
        return max((one.granted - one.came for one in self.asked if one.model == model), default=0.0)


def played(
    state_dir: Path, clients: Sequence[Client], stays: dict[str, float | None], *, seconds: float, load_s: float
) -> Turns:
    """`seconds` of simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> Turns:
            turns = Turns(state_dir, stays, load_s)
            await turns.run(clients, seconds)
            return turns

        return runner.run(main())


def bound_s(stays: dict[str, float | None], clients: Sequence[Client], load_s: float) -> float:
    """The longest that anybody may wait: each other member once, its stay, its requests' end and two swaps' parts."""
    least = [min(load_s, 30.0) if stay is None else stay for stay in stays.values()]
    busy_s = max((client.busy_s for client in clients), default=0.0)
    return sum(stay + busy_s + load_s + LAST_S + 0.3 for stay in least)
