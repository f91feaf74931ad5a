"""Room on the devices for a server that is about to start: found by the ledger, made by stopping idle ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.ir.live import UnavailableError
from launcher.supervise.ledger import Resident, can_ever_fit, choose_victims, needs_bytes, reload_seconds
from launcher.supervise.runner import Runner

_LOOK_AGAIN_S = 0.05
_REALLY_FREE_S = 5.0
"""How long memory may take to come back after its process ended, before the ledger decides anew."""


class Room:
    """The ledger of `runners` (a live view) over `budgets`, bytes by device.

    `available` gives what the system reports as free, bytes by device, for the devices it knows.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        budgets: Mapping[str, int],
        available: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        """Keeps references only."""
        self.budgets = budgets
        self._runners = runners
        self._available = available or available_bytes
        # What one start decides about memory must hold until its server counts as running.
        self._placing = asyncio.Lock()

    async def place(self, runner: Runner, on_wait: Callable[[], None], on_start: Callable[[], None]) -> None:
        """Start `runner` as soon as it fits, stopping idle ones for it; waits while others are busy, without an end.

        `on_wait` is called when that waiting begins, `on_start` right before the start. Raises UnavailableError when
        it can never fit, or when a process that must go does not end.
        """
        while True:
            async with self._placing:
                if await self._made(runner):
                    on_start()
                    runner.start()
                    return
            on_wait()
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _made(self, runner: Runner) -> bool:
        """Whether there is room for `runner` now, after stopping what may go for it."""
        need = needs_bytes(runner.spec.needs)
        while (victims := self._victims(runner, need)) is not None:
            if not victims:
                return True
            going = [self._runners[name] for name in victims]
            for other in going:
                other.stop("evicted")
            for other in going:
                await other.until("stopped", "failed")
                if other.life.alive:
                    raise UnavailableError("server_stuck", f"{other.spec.name!r} does not end", retry_after_s=30)
            await self._until_free(need)
        return False

    def _victims(self, runner: Runner, need: Mapping[str, int]) -> tuple[str, ...] | None:
        """Who must go for `runner`; None: nobody who may, now. Raises UnavailableError when waiting cannot help."""
        now = asyncio.get_running_loop().time()
        holding = [o for o in self._runners.values() if o is not runner and _holds_memory(o)]
        residents = [_resident(other, now) for other in holding]
        if not can_ever_fit(need, residents, self.budgets):
            message = f"there is no room for {runner.spec.name!r} beside what always runs"
            raise UnavailableError("no_room", message, retry_after_s=60)
        budgets = dict(self.budgets)
        # What is always on was planned for, and starts whatever the system says: it may count caches that give way.
        system = {} if runner.spec.start == "boot" else self._available()
        for device, free in system.items():
            if device in budgets:
                # what is loaded shows in the system's figure already, what is on its way does not yet
                loaded = sum(needs_bytes(o.spec.needs).get(device, 0) for o in holding if not _is_coming(o))
                budgets[device] = min(budgets[device], free + loaded)
        return choose_victims(need, residents, budgets)

    async def _until_free(self, need: Mapping[str, int]) -> None:
        """Wait until the system too says that what the ended processes held is free, at most 5 s."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _REALLY_FREE_S
        while loop.time() < give_up_at:
            free = self._available()
            if all(free.get(device, size) >= size for device, size in need.items()):
                return
            await asyncio.sleep(_LOOK_AGAIN_S)


def _holds_memory(runner: Runner) -> bool:
    """Whether its memory is taken, or promised to a start that comes by itself."""
    life = runner.life
    to_come = _is_pinned(runner) and life.state == "stopped" and not life.held
    return life.alive or life.wanted or life.returning or to_come


def _is_coming(runner: Runner) -> bool:
    """Whether it is on its way up, so that its memory is not all taken yet."""
    return runner.life.returning or runner.life.state in ("starting", "backoff", "stopped")


def _resident(runner: Runner, now: float) -> Resident:
    """`runner` as the ledger sees it."""
    spec = runner.spec
    needs = needs_bytes(spec.needs)
    return Resident(
        name=spec.name,
        needs=needs,
        idle_s=now - runner.last_used,
        reload_s=reload_seconds(runner.ready_s, needs),
        busy=runner.busy or runner.life.returning or runner.life.state == "starting",
        pinned=_is_pinned(runner),
    )


def _is_pinned(runner: Runner) -> bool:
    """Whether it is always on: nobody goes for it, and it goes for nobody."""
    return runner.spec.start == "boot" and runner.spec.exclusive is None


def available_bytes() -> dict[str, int]:
    """What the system reports as free, of the devices that it is asked about: `ram`."""
    ram = available_ram_bytes()
    return {} if ram is None else {"ram": ram}


def available_ram_bytes() -> int | None:
    """MemAvailable of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
