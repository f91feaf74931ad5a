"""Servers on demand: one start for many waiters, room made first, one member of an exclusive group at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from launcher.ir.host import HostGpu
from launcher.ir.live import Lease, UnavailableError
from launcher.supervise import events
from launcher.supervise.lifecycle import FAILED_PAUSE_S
from launcher.supervise.room import Placing, Room, holding
from launcher.supervise.runner import Runner
from launcher.supervise.scheduler import rivals
from launcher.supervise.slots import save_slots

_ROOM_WAIT_S = 30.0
_LOOK_AGAIN_S = 0.05
_LEAST_PAUSE_S = 0.001


class StartAttempt(Placing):
    """One start that several waiting requests share; each waits for a lease of its own."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.waiters: dict[asyncio.Future[Lease], None] = {}
        """In order of arrival."""


class Waker:
    """Implements `Upstreams.acquire` over `runners` (a live view: entries come and go on reload).

    `budgets`: bytes by device. `available`, `cards`: see `Room`.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        budgets: Mapping[str, int],
        drain_timeout_s: float,
        available: Callable[[], Mapping[str, int]] | None = None,
        cards: Callable[[], Awaitable[Mapping[str, HostGpu]]] | None = None,
    ) -> None:
        self.room = Room(runners, budgets, available, cards)
        self.closed = False
        self.is_recovering = False
        """Nothing is started yet: the processes of an earlier runtime are not known."""
        self.drain_timeout_s = drain_timeout_s
        self._runners = runners
        self._attempts: dict[str, StartAttempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Of every attempt, also of those that nobody waits for any more."""
        self._groups: dict[str, asyncio.Lock] = {}
        self._next: dict[str, asyncio.Lock] = {}

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """A lease on `name`, which is started first if it is started on demand. Raises UnavailableError."""
        runner = self._runners.get(name)
        if runner is None:
            raise UnavailableError("unknown_server", f"there is no server {name!r}")
        if runner.life.usable:
            return runner.grant(name)
        if self.closed:
            raise UnavailableError("shutting_down", "the fleet is stopping", retry_after_s=5)
        attempt = self._attempts.get(name) or self._begin(name, runner)
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        attempt.waiters[waiter] = None
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release(ok=False)  # granted in the very instant in which the waiter went away
            if isinstance(error, TimeoutError):
                raise _too_late(name, timeout_s, attempt) from None
            raise
        finally:
            attempt.waiters.pop(waiter, None)
            if not attempt.waiters and not attempt.committed and attempt.task is not None:
                self._forget(name, attempt)
                attempt.task.cancel()

    def waiting(self, name: str) -> int:
        """Number of requests that wait for the start of `name`."""
        attempt = self._attempts.get(name)
        return 0 if attempt is None else len(attempt.waiters)

    async def close(self) -> None:
        """Refuse requests from now on, and cancel every start under way (the caller stops the servers)."""
        self.closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, name: str, runner: Runner) -> StartAttempt:
        attempt = self._attempts[name] = StartAttempt()
        attempt.task = asyncio.get_running_loop().create_task(self._run(runner, attempt))
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(lambda task: self._done(name, attempt, task))
        return attempt

    async def _run(self, runner: Runner, attempt: StartAttempt) -> None:
        """Start `runner`, and grant the waiters their leases before another start may displace it."""
        await runner.wait_while(lambda: self.is_recovering)
        async with self._next_turn(runner), self.turn(runner.spec.unit.exclusive):
            if runner.spec.unit.start == "demand" or runner.spec.unit.exclusive is not None:
                await self._bring_up(runner, attempt)
            else:
                attempt.commit()
                await _settle(runner)
            self._forget(runner.name, attempt)
            for waiter in attempt.waiters:
                if not waiter.done():
                    waiter.set_result(runner.grant(runner.name))

    def _done(self, name: str, attempt: StartAttempt, task: asyncio.Task[None]) -> None:
        """Give the error of the attempt to those that still wait."""
        self._forget(name, attempt)
        self._tasks.discard(task)
        error: BaseException | None
        if task.cancelled():
            error = UnavailableError("shutting_down", "the fleet is stopping", retry_after_s=5)
        else:
            error = task.exception()
        if isinstance(error, OSError):  # nothing was begun: not even the memory could be read
            error = UnavailableError("server_failed", f"server {name!r} failed: {error}", retry_after_s=1)
        for waiter in attempt.waiters:
            if not waiter.done() and error is not None:
                waiter.set_exception(_copied(error))

    def _forget(self, name: str, attempt: StartAttempt) -> None:
        """Detach the attempt: waiters that arrive from now on begin another."""
        if self._attempts.get(name) is attempt:
            del self._attempts[name]

    def turn(self, *groups: str | None) -> contextlib.AbstractAsyncContextManager[None]:
        """Within the block no other task starts or swaps members of these exclusive groups (None: no group).

        Not reentrant: a second call in the same task would wait for itself.
        """
        return holding(self._groups, {group for group in groups if group is not None})

    async def start_in_room(self, runner: Runner) -> None:
        """Start `runner` as the scheduler allows, freeing memory and waiting for it, at most half a minute.

        If that fails, a process that is always on is started all the same (its plan was found to fit), and one that is
        started on demand is left to its next request, which gets the error.
        """
        try:
            async with asyncio.timeout(_ROOM_WAIT_S):
                await self.room.place(runner, Placing())
        except (UnavailableError, TimeoutError):
            if runner.spec.unit.start == "boot":
                runner.start()

    def rivals(self, runner: Runner) -> Iterable[Runner]:
        """The other members of its exclusive group that run or will run again by themselves."""
        group = runner.spec.unit.exclusive
        members = (
            other for other in self._runners.values() if group is not None and other.spec.unit.exclusive == group
        )
        return tuple(self._runners[name] for name in rivals(runner.spec, (other.tenant(0.0) for other in members)))

    async def fill_groups(self, defaults: Iterable[Runner]) -> None:
        """Start those of `defaults` whose exclusive group has become empty, since idle members were stopped."""
        for runner in defaults:
            if runner.spec.unit.exclusive is not None and self._is_left_out(runner):
                async with self.turn(runner.spec.unit.exclusive):
                    if self._is_left_out(runner):
                        await self.start_in_room(runner)

    def _is_left_out(self, runner: Runner) -> bool:
        life = runner.life
        return life.state == "stopped" and not (life.held or life.closed or life.returning or self.rivals(runner))

    async def _bring_up(self, runner: Runner, attempt: StartAttempt) -> None:
        """Make room and start `runner`; on failure restart what it displaced, where there is still room for it."""
        if runner.life.usable:
            return
        if runner.life.held:
            raise UnavailableError("server_stopped", f"server {runner.name!r} was stopped by an operator")
        await runner.until("stopped", "failed", "ready", "sleeping", "starting", "backoff")
        displaced: list[Runner] = []
        began = asyncio.get_running_loop().time()
        try:
            await self.clear_group(runner, displaced)
            if runner.life.state in ("stopped", "failed"):
                await self.room.place(runner, attempt)
            attempt.commit()
            await _settle(runner)
            if displaced:
                _emit_swap(runner, displaced, began)
        except BaseException:
            if not self.closed and not runner.life.alive:
                for other in displaced:
                    await self.room.until_given_back(other)
                    # else it comes with its next request, a default once there is room
                    if {*self.rivals(other)} <= {runner} and self.room.has_room(other):
                        other.start()
            raise

    @contextlib.asynccontextmanager
    async def _next_turn(self, runner: Runner) -> AsyncIterator[None]:
        """Within the block `runner` is next in its exclusive group, and the turn of the running member is over.

        Meanwhile requests for the running member go on, and upkeep need not wait: this is no `turn`.
        """
        group, loop = runner.spec.unit.exclusive, asyncio.get_running_loop()
        if group is None:
            yield
            return
        async with self._next.setdefault(group, asyncio.Lock()):
            while True:
                stay_s = max((other.tenant(loop.time()).stay_s for other in self.rivals(runner)), default=0.0)
                if not stay_s:
                    break
                await asyncio.sleep(max(_LEAST_PAUSE_S, min(stay_s, _LOOK_AGAIN_S)))
            yield

    async def clear_group(self, runner: Runner, displaced: list[Runner]) -> None:
        """Drain and stop the other members of its exclusive group, noting in `displaced` those that ran.

        The caller holds the group's `turn`. Raises UnavailableError when one does not end.
        """
        for other in self.rivals(runner):
            await self._put_away(other, "exclusive", displaced)

    async def unload(self, name: str) -> None:
        """Drain and stop a server that is started on demand; the next request starts it. Raises UnavailableError."""
        runner = self._runners.get(name)
        if runner is None:
            raise UnavailableError("unknown_server", f"there is no server {name!r}")
        if runner.spec.unit.start != "demand":
            raise UnavailableError("always_on", f"server {name!r} is always on: `launch stop {name}` stops it")
        async with self.turn(runner.spec.unit.exclusive):
            if runner.life.alive:
                await self._put_away(runner, "unloaded", [])

    async def end(self, runner: Runner, why: str) -> None:
        """Let requests in flight finish, then stop `runner`, and wait until it has stopped."""
        try:
            if runner.life.state in ("ready", "sleeping"):
                await runner.drain(self.drain_timeout_s)
            runner.stop(why)
            await runner.until("stopped", "failed")
        finally:
            runner.mark("draining", on=False)

    async def _put_away(self, runner: Runner, why: str, ended: list[Runner]) -> None:
        """Drain and stop `runner`, add it to `ended`, save its slots. Raises UnavailableError when it does not end."""
        try:
            drained = await runner.drain(self.drain_timeout_s)
            ended.append(runner)
            if drained and runner.life.state == "ready":
                runner.saved_slots = await save_slots(runner.spec)
            runner.stop(why)
            await runner.until("stopped", "failed")
        finally:
            runner.mark("draining", on=False)
        if runner.life.alive:
            raise UnavailableError("server_stuck", f"{runner.name!r} does not end", retry_after_s=30)


def _emit_swap(runner: Runner, displaced: Iterable[Runner], began: float) -> None:
    instead_of = tuple(other.name for other in displaced)
    seconds = asyncio.get_running_loop().time() - began
    runner.emit(events.Swapped(name=runner.name, instead_of=instead_of, seconds=seconds))


def _too_late(name: str, timeout_s: float, attempt: StartAttempt) -> UnavailableError:
    if attempt.lacks_room:
        message = f"there was no room for {name!r} within {timeout_s:g} s: others are busy"
        return UnavailableError("no_room", message, retry_after_s=10)
    message = f"server {name!r} was not ready within {timeout_s:g} s"
    return UnavailableError("start_timeout", message, retry_after_s=5)


async def _settle(runner: Runner) -> None:
    """Wait until `runner` takes requests. Raises UnavailableError when it will not."""
    name = runner.name
    await runner.wait_while(
        lambda: not runner.life.usable and (runner.life.returning or runner.life.state not in ("failed", "stopped"))
    )
    state = runner.life.state
    if state == "failed":
        raise UnavailableError(
            "server_failed", f"server {name!r} failed: {runner.life.error}", retry_after_s=FAILED_PAUSE_S
        )
    if state == "stopped":
        raise UnavailableError("server_stopped", f"server {name!r} is stopped")


def _copied(error: BaseException) -> BaseException:
    """A copy of the error for another waiter: one object raised by many collects their tracebacks."""
    if isinstance(error, UnavailableError):
        return UnavailableError(error.code, error.message, retry_after_s=error.retry_after_s)
    return error
