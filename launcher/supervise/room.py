"""Device memory for a server that is about to start: found by the scheduler, freed by stopping idle servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from launcher.base.procfs import meminfo
from launcher.ir.host import HostGpu
from launcher.ir.live import UnavailableError
from launcher.sizes import gib
from launcher.supervise.events import RoomMade
from launcher.supervise.runner import Runner
from launcher.supervise.scheduler import GIVE_BACK_S, Tenant, devices_left, evict_for, needs_bytes, not_given_back

_LOG = logging.getLogger("launch.supervise")
_LOOK_AGAIN_S = 0.05
_REALLY_FREE_S = 5.0
"""Seconds that memory may take to be free after its process has ended, before the scheduler decides again."""


class Placing:
    """A start that may have to wait. `lacks_room`: others must be idle first; `committed`: it has begun."""

    committed = False
    lacks_room = False

    def commit(self) -> None:
        """The start has begun, or had already: from now on it goes on even if no request waits for it."""
        self.committed, self.lacks_room = True, False


class Room:
    """The memory of `runners` (a live view) over `budgets`, bytes by device.

    `available` gives what the system reports as free, bytes by device, for the devices it knows; `cards` what drivers
    say of GPUs, by device.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        budgets: Mapping[str, int],
        available: Callable[[], Mapping[str, int]] | None = None,
        cards: Callable[[], Awaitable[Mapping[str, HostGpu]]] | None = None,
    ) -> None:
        self.budgets = budgets
        self._runners = runners
        self._available = available or available_bytes
        self._cards = cards
        # What one start decides about a device's memory must hold until its server counts as running there.
        self._placing: dict[str, asyncio.Lock] = {}

    async def place(self, runner: Runner, placing: Placing) -> None:
        """Start `runner` as soon as it fits, stopping idle servers for it; waits without a limit while others are busy.

        Raises UnavailableError when it can never fit, or when a process that must go does not end.
        """
        while True:
            async with holding(self._placing, {need.device for need in runner.spec.unit.memory}):
                if await self._made(runner):
                    placing.commit()
                    runner.start()
                    return
            placing.lacks_room = True
            await asyncio.sleep(_LOOK_AGAIN_S)

    def has_room(self, runner: Runner) -> bool:
        """Whether the budgets have room for `runner` now, without stopping another server."""
        try:
            return evict_for(runner.spec, self._sharers(runner), self.budgets, {}) == ()
        except LookupError:
            return False

    async def _made(self, runner: Runner) -> bool:
        """Whether there is room for `runner` now, after stopping idle servers. Raises UnavailableError."""
        need = needs_bytes(runner.spec.unit.memory)
        while True:
            await self.until_given_back(runner)
            victims = self._victims(runner)
            if not victims:
                return victims is not None
            going = [self._runners[name] for name in victims]
            runner.emit(self._event(runner, going))
            for other in going:
                other.stop("evicted")
            for other in going:
                await other.until("stopped", "failed")
                if other.life.alive:
                    raise UnavailableError("server_stuck", f"{other.name!r} does not end", retry_after_s=30)
            await self._until_free(need)

    def _event(self, runner: Runner, going: Iterable[Runner]) -> RoomMade:
        now = asyncio.get_running_loop().time()
        residents = [other.tenant(now).resident() for other in going]
        weighed = {
            r.name: {"idle_s": round(r.idle_s, 3), "reload_s": round(r.reload_s, 3), "score": round(r.keep_value, 6)}
            for r in residents
        }
        needs = needs_bytes(runner.spec.unit.memory)
        return RoomMade(name=runner.name, going=tuple(r.name for r in residents), needs=needs, weighed=weighed)

    def _victims(self, runner: Runner) -> tuple[str, ...] | None:
        """Names to stop for `runner`; None: not possible now. Raises UnavailableError when waiting cannot help."""
        # What is always on was planned for, and starts whatever the system says: it may count caches that give way.
        available = {} if runner.spec.unit.start == "boot" else self._available()
        try:
            return evict_for(runner.spec, self._sharers(runner), self.budgets, available)
        except LookupError:
            message = f"there is no room for {runner.name!r} beside what always runs"
            raise UnavailableError("no_room", message, retry_after_s=60) from None

    def _sharers(self, runner: Runner) -> list[Tenant]:
        """The processes with memory on its devices, `runner` included."""
        now = asyncio.get_running_loop().time()
        devices = {need.device for need in runner.spec.unit.memory}
        sharers = (r for r in self._runners.values() if any(need.device in devices for need in r.spec.unit.memory))
        return [other.tenant(now) for other in sharers]

    async def _until_free(self, need: Mapping[str, int]) -> None:
        """Wait, at most 5 s, until the system reports the memory of the ended processes as free, too."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _REALLY_FREE_S
        while loop.time() < give_up_at:
            free = self._available()
            if all(free.get(device, size) >= size for device, size in need.items()):
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def until_given_back(self, runner: Runner) -> None:
        """Wait until no driver counts any more what processes held that have just ended, where `runner` lacks it.

        What is lacking `GIVE_BACK_S` after their end, or later, is somebody else's, and for the start itself to say.
        """
        loop, need = asyncio.get_running_loop(), needs_bytes(runner.spec.unit.memory)
        until = loop.time() + GIVE_BACK_S
        lacking: Mapping[str, int] = {}
        while self._cards is not None and (now := loop.time()) < until:
            devices = devices_left(self._sharers(runner), now)
            if not devices:
                break
            lacking = not_given_back(need, devices, await self._cards())
            if not lacking:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        for device, size in lacking.items():
            message = "%s is started although %s has %s less free than it needs, %g s after who had it ended"
            _LOG.warning(message, runner.name, device, gib(size), GIVE_BACK_S)


@contextlib.asynccontextmanager
async def holding(locks: dict[str, asyncio.Lock], names: Iterable[str]) -> AsyncIterator[None]:
    """Have the locks of `names` within the block, taken in one order by everybody."""
    async with contextlib.AsyncExitStack() as stack:
        for name in sorted(names):
            await stack.enter_async_context(locks.setdefault(name, asyncio.Lock()))
        yield


def available_bytes() -> dict[str, int]:
    """Bytes that the system reports as free, by device: only `ram` (MemAvailable)."""
    free = meminfo().get("MemAvailable")
    return {} if free is None else {"ram": free}
