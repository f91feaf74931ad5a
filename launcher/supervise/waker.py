"""Servers on demand: one start for many waiters, room made first, one member of an exclusive group at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.ir.live import UnavailableError
from launcher.supervise.ledger import Resident, choose_victims, needs_bytes
from launcher.supervise.runner import Runner

_LEASE_S = 0.05
"""How long a waiter may take from its promise to `enter` before the server may be taken away again."""


class _Flight:
    """One start that several waiters share."""

    def __init__(self) -> None:
        """Nobody waits yet, nothing was begun."""
        self.task: asyncio.Task[None] | None = None
        self.waiters = 0
        self.begun = False
        self.granted = False


class Waker:
    """Implements `Upstreams.wake` over `runners` (a live view: entries come and go on reload).

    `budgets`: bytes by device. `available_ram` gives what the system reports as free, or None.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        budgets: Mapping[str, int],
        drain_timeout_s: float,
        available_ram: Callable[[], int | None] | None = None,
    ) -> None:
        """Keeps references only."""
        self.budgets = budgets
        self.closed = False
        self.drain_timeout_s = drain_timeout_s
        self._runners = runners
        self._available_ram = available_ram or available_ram_bytes
        self._flights: dict[str, _Flight] = {}
        self._groups: dict[str, asyncio.Lock] = {}
        # What one start decides about memory must hold until its server counts as running.
        self._placing = asyncio.Lock()

    async def wake(self, name: str, timeout_s: float) -> None:
        """Return once `name` takes requests, starting it if it is started on demand. Raises UnavailableError.

        A waiter that goes away is dropped; a start that nobody waits for any more is not begun.
        """
        runner = self._runners.get(name)
        if runner is None:
            raise UnavailableError("unknown_server", f"there is no server {name!r}")
        if runner.usable:
            return
        if self.closed:
            raise UnavailableError("shutting_down", "the fleet is stopping", retry_after_s=5)
        flight = self._flights.get(name) or self._take_off(name, runner)
        assert flight.task is not None  # noqa: S101 - set by _take_off
        flight.waiters += 1
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(flight.task)
        except TimeoutError:
            message = f"server {name!r} was not ready within {timeout_s:g} s"
            raise UnavailableError("start_timeout", message, retry_after_s=5) from None
        except UnavailableError as error:
            # Each waiter raises its own: one object raised by many collects their tracebacks.
            raise UnavailableError(error.code, error.message, retry_after_s=error.retry_after_s) from None
        finally:
            flight.waiters -= 1
            if flight.granted:
                asyncio.get_running_loop().call_later(_LEASE_S, _end_lease, runner)
            elif flight.waiters == 0 and not flight.begun and not flight.task.done():
                if self._flights.get(name) is flight:
                    del self._flights[name]
                flight.task.cancel()

    async def close(self) -> None:
        """Refuse from now on, and end every start that is under way (the servers are stopped by the caller)."""
        self.closed = True
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_off(self, name: str, runner: Runner) -> _Flight:
        """Begin a flight for `name`; it leaves the table when it ends."""
        flight = _Flight()
        flight.task = asyncio.get_running_loop().create_task(self._fly(runner, flight))
        self._flights[name] = flight

        def landed(task: asyncio.Task[None]) -> None:
            if self._flights.get(name) is flight:
                del self._flights[name]
            if not task.cancelled():
                task.exception()  # retrieved here too: there may be no waiter left

        flight.task.add_done_callback(landed)
        return flight

    async def _fly(self, runner: Runner, flight: _Flight) -> None:
        """Bring `runner` up, then promise it to the waiters before another start may take it away."""
        try:
            async with self._group_lock(runner.spec.exclusive):
                if runner.spec.start == "demand" or runner.spec.exclusive is not None:
                    await self._bring_up(runner, flight)
                else:
                    flight.begun = True
                    await _settle(runner)
                runner.leases += flight.waiters
                flight.granted = True
        except asyncio.CancelledError:
            if not self.closed:
                raise
            raise UnavailableError("shutting_down", "the fleet is stopping", retry_after_s=5) from None

    def _group_lock(self, group: str | None) -> asyncio.Lock:
        """The lock of an exclusive group; servers of none have each their own."""
        return asyncio.Lock() if group is None else self._groups.setdefault(group, asyncio.Lock())

    async def _bring_up(self, runner: Runner, flight: _Flight) -> None:
        """Make room, start `runner`, and on failure bring back what it displaced."""
        if runner.usable:
            return
        if runner.held:
            raise UnavailableError("server_stopped", f"server {runner.spec.name!r} was stopped by an operator")
        await runner.until("stopped", "failed", "ready", "sleeping", "starting", "backoff")
        displaced: list[Runner] = []
        try:
            await self._clear_group(runner, displaced)
            if runner.life.state in ("stopped", "failed"):
                async with self._placing:
                    await self._make_room(runner)
                    flight.begun = True
                    runner.start()
            flight.begun = True
            await _settle(runner)
        except BaseException:
            if not self.closed:
                for other in displaced:
                    other.start()
            raise

    async def _clear_group(self, runner: Runner, displaced: list[Runner]) -> None:
        """Drain and stop the other members of the exclusive group, noting in `displaced` those that were running."""
        group = runner.spec.exclusive
        for other in [o for o in self._runners.values() if group is not None and o.spec.exclusive == group]:
            if other is runner or other.life.state in ("stopped", "failed"):
                continue
            try:
                await other.drain(self.drain_timeout_s)
                displaced.append(other)
                other.stop("exclusive")
                await other.until("stopped", "failed")
            finally:
                other.draining = False
            if other.life.alive:
                raise UnavailableError("server_stuck", f"{other.spec.name!r} does not end", retry_after_s=30)

    async def _make_room(self, runner: Runner) -> None:
        """Stop idle servers until `runner` fits its devices. Raises UnavailableError when it cannot."""
        running = [
            Resident(
                name=other.spec.name,
                needs=needs_bytes(other.spec.needs),
                last_used=other.last_used,
                busy=other.busy or other.life.state == "starting",
                pinned=other.spec.start == "boot" and other.spec.exclusive is None,
            )
            for other in self._runners.values()
            if other.life.alive
        ]
        need = needs_bytes(runner.spec.needs)
        victims = choose_victims(need, running, self._budget(running))
        if victims is None:
            message = f"there is no room for {runner.spec.name!r} while others are busy"
            raise UnavailableError("no_room", message, retry_after_s=10)
        for name in victims:
            self._runners[name].stop("evicted")
        for name in victims:
            await self._runners[name].until("stopped", "failed")

    def _budget(self, running: list[Resident]) -> dict[str, int]:
        """Bytes by device: the plan's budget, and for RAM not more than the system says is there."""
        budget = dict(self.budgets)
        available = self._available_ram()
        if available is not None and "ram" in budget:
            budget["ram"] = min(budget["ram"], available + sum(r.needs.get("ram", 0) for r in running))
        return budget


async def _settle(runner: Runner) -> None:
    """Wait until `runner` takes requests. Raises UnavailableError when it will not."""
    name = runner.spec.name
    if runner.life.state == "stopped":
        raise UnavailableError("server_stopped", f"server {name!r} is stopped")
    state = await runner.until("ready", "sleeping", "failed", "stopped")
    if state == "failed":
        raise UnavailableError("server_failed", f"server {name!r} failed: {runner.life.error}", retry_after_s=30)
    if state == "stopped":
        raise UnavailableError("server_stopped", f"server {name!r} is stopped")


def _end_lease(runner: Runner) -> None:
    """A promised waiter has entered, or never will."""
    runner.leases -= 1
    runner.check_quiet()


def available_ram_bytes() -> int | None:
    """MemAvailable of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
