"""Servers on demand: one start for many waiters, room made first, one member of an exclusive group at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from launcher.ir.live import UnavailableError
from launcher.supervise import events
from launcher.supervise.room import Room
from launcher.supervise.runner import FAILED_PAUSE_S, Runner
from launcher.supervise.slots import save_slots

_ROOM_WAIT_S = 30.0
_LEASE_S = 0.05
"""How long a waiter may take from its promise to `enter` before the server may be taken away again."""


class _Flight:
    """One start that several waiters share. `lacks_room`: it waits for others to be idle."""

    def __init__(self) -> None:
        """Nobody waits yet, nothing was begun."""
        self.task: asyncio.Task[None] | None = None
        self.waiters = 0
        self.begun = False
        self.granted = False
        self.lacks_room = False

    def waits_for_room(self) -> None:
        """Nobody who could go for it is idle."""
        self.lacks_room = True

    def begins(self) -> None:
        """From now on it goes on without waiters too."""
        self.begun, self.lacks_room = True, False


class Waker:
    """Implements `Upstreams.wake` over `runners` (a live view: entries come and go on reload).

    `budgets`: bytes by device. `available`: see `Room`.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        budgets: Mapping[str, int],
        drain_timeout_s: float,
        available: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        """Keeps references only."""
        self.room = Room(runners, budgets, available)
        self.closed = False
        self.drain_timeout_s = drain_timeout_s
        self._runners = runners
        self._flights: dict[str, _Flight] = {}
        self._groups: dict[str, asyncio.Lock] = {}

    async def wake(self, name: str, timeout_s: float) -> None:  # noqa: C901  # one clause for each end
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
        flight = self._flights.get(name)
        if flight is None or flight.granted:  # who comes after the promise was not counted in it
            flight = self._take_off(name, runner)
        assert flight.task is not None  # noqa: S101 - set by _take_off
        flight.waiters += 1
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(flight.task)
        except TimeoutError:
            raise _too_late(name, timeout_s, flight) from None
        except OSError as error:  # nothing was begun: not even a look at the memory was possible
            raise UnavailableError("server_failed", f"server {name!r} failed: {error}", retry_after_s=1) from None
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

    def waiting(self, name: str) -> int:
        """How many wait for the start of `name`."""
        flight = self._flights.get(name)
        return 0 if flight is None else flight.waiters

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
            async with self.turn(runner.spec.exclusive):
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

    @contextlib.asynccontextmanager
    async def turn(self, *groups: str | None) -> AsyncIterator[None]:
        """Nobody else starts or swaps members of these exclusive groups within the block (None is no group).

        Reentry by the same task would wait for itself.
        """
        async with contextlib.AsyncExitStack() as stack:
            for group in sorted({group for group in groups if group is not None}):
                await stack.enter_async_context(self._groups.setdefault(group, asyncio.Lock()))
            yield

    async def start_in_room(self, runner: Runner) -> None:
        """Start `runner` as the ledger allows, making room and waiting for it, at most half a minute.

        Where that cannot be, one that is always on is started all the same (its plan was found to fit), and one that
        is started on demand is left to its next request, which is told why.
        """
        try:
            async with asyncio.timeout(_ROOM_WAIT_S):
                await self.room.place(runner, on_wait=_nothing, on_start=_nothing)
        except (UnavailableError, TimeoutError):
            if runner.spec.start == "boot":
                runner.start()

    def rivals(self, runner: Runner) -> Iterable[Runner]:
        """The other members of its exclusive group that run or will run again by themselves."""
        group = runner.spec.exclusive
        if group is None:
            return ()
        members = [o for o in self._runners.values() if o is not runner and o.spec.exclusive == group]
        return tuple(o for o in members if o.life.alive or o.life.wanted)

    async def _bring_up(self, runner: Runner, flight: _Flight) -> None:
        """Make room, start `runner`, and on failure bring back what it displaced."""
        if runner.usable:
            return
        if runner.held:
            raise UnavailableError("server_stopped", f"server {runner.spec.name!r} was stopped by an operator")
        await runner.until("stopped", "failed", "ready", "sleeping", "starting", "backoff")
        displaced: list[Runner] = []
        began = asyncio.get_running_loop().time()
        try:
            await self.clear_group(runner, displaced)
            if runner.life.state in ("stopped", "failed"):
                await self.room.place(runner, on_wait=flight.waits_for_room, on_start=flight.begins)
            flight.begins()
            await _settle(runner)
            if displaced:
                _tell_swap(runner, displaced, began)
        except BaseException:
            if not self.closed and not runner.life.alive:
                for other in displaced:
                    other.start()
            raise

    async def clear_group(self, runner: Runner, displaced: list[Runner]) -> None:
        """Drain and stop the other members of the exclusive group, noting in `displaced` those that were running.

        The caller has its `turn`. Raises UnavailableError when one does not end.
        """
        for other in self.rivals(runner):
            try:
                drained = await other.drain(self.drain_timeout_s)
                displaced.append(other)
                if drained:
                    await save_slots(other)
                other.stop("exclusive")
                await other.until("stopped", "failed")
            finally:
                other.draining = False
            if other.life.alive:
                raise UnavailableError("server_stuck", f"{other.spec.name!r} does not end", retry_after_s=30)


def _tell_swap(runner: Runner, displaced: Iterable[Runner], began: float) -> None:
    """A swap is done: how long it took, from the beginning of the drain."""
    instead_of = tuple(other.spec.name for other in displaced)
    seconds = asyncio.get_running_loop().time() - began
    runner.tell(events.Swapped(name=runner.spec.name, instead_of=instead_of, seconds=seconds))


def _nothing() -> None:
    """Nobody is to be told."""


def _too_late(name: str, timeout_s: float, flight: _Flight) -> UnavailableError:
    """What a waiter is told whose time is up."""
    if flight.lacks_room:
        message = f"there was no room for {name!r} within {timeout_s:g} s: others are busy"
        return UnavailableError("no_room", message, retry_after_s=10)
    message = f"server {name!r} was not ready within {timeout_s:g} s"
    return UnavailableError("start_timeout", message, retry_after_s=5)


async def _settle(runner: Runner) -> None:
    """Wait until `runner` takes requests. Raises UnavailableError when it will not."""
    name = runner.spec.name
    state = await runner.settled()
    if state == "failed":
        raise UnavailableError(
            "server_failed", f"server {name!r} failed: {runner.life.error}", retry_after_s=FAILED_PAUSE_S
        )
    if state == "stopped":
        raise UnavailableError("server_stopped", f"server {name!r} is stopped")


def _end_lease(runner: Runner) -> None:
    """A promised waiter has entered, or never will."""
    runner.leases -= 1
    runner.stir()
