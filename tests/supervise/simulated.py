"""A fleet without processes on a clock of its own: every schedule of starts, crashes and requests in milliseconds.

What decides (lifecycle, scheduler, waker, supervisor) is real; only what a runner does to the host is simulated.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator
from typing import Any

from launcher.ir.host import HostGpu
from launcher.supervise.lifecycle import Action, Exited, Ready
from launcher.supervise.runner import Runner, SharedContext
from launcher.supervise.scheduler import GIVE_BACK_S, needs_bytes
from launcher.supervise.spec import ProcessSpec

CARD = "cuda0"


class _Clock(selectors.SelectSelector):
    """A selector that does not sleep: time goes on by as much as the loop would have slept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now. With nothing due at any time everybody waits for somebody, for ever: that is an error."""
        ready = super().select(0)
        assert ready or timeout is not None, "nothing will ever happen again"
        if not ready:
            self.now += max(0.0, timeout or 0.0)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds of simulated time."""
        return self._clock.now

    def run_in_executor(  # type: ignore[override] # the base is generic in the arguments; here they are passed on
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """At once: a thread would take real time."""
        done: asyncio.Future[Any] = self.create_future()
        done.set_result(func(*args))
        return done


class World:
    """What must hold whenever a process comes to be or is chosen to go; `fates` says how each start ends."""

    def __init__(
        self, budget: int, fates: Iterator[tuple[bool, float, float]], vram: int = 0, lag_s: float = 0.0
    ) -> None:
        """A fate: whether it becomes ready, after how long, and how long its end takes.

        The driver of `CARD`, which has `vram`, counts what a process held for `lag_s` after its end.
        """
        self.budget = budget
        self.fates = fates
        self.vram = vram
        self.lag_s = lag_s
        self.left: list[tuple[float, int]] = []
        """When a process on the card ended, and what it held."""
        self.runners: list[Simulated] = []
        self.spawned = 0
        self.broken: list[str] = []
        """What did not hold, also where nobody heard of it: a start that nobody waits for any more tells nobody."""

    async def cards(self) -> dict[str, HostGpu]:
        """What the card's driver says; it takes a moment."""
        await asyncio.sleep(0.003)
        return {CARD: HostGpu(name=CARD, backend="cuda", model="", vram_bytes=self.vram, free_bytes=self.free_bytes())}

    def free_bytes(self) -> int:
        """Of the card, as its driver counts; a process holds its own as soon as it is started."""
        now = asyncio.get_running_loop().time()
        held = sum(size for at, size in self.left if now - at < self.lag_s)
        return self.vram - held - sum(on_card(r) for r in self.runners if r.exists)

    def spawn(self, runner: Simulated) -> tuple[bool, float, float]:
        """A process of `runner` begins; its fate. One that was placed meets no memory that may yet be given back."""
        self.spawned += 1
        since_s = asyncio.get_running_loop().time() - max((at for at, _ in self.left), default=-GIVE_BACK_S)
        if runner.placed and on_card(runner) and self.free_bytes() < 0 and since_s < GIVE_BACK_S:
            self.broken.append(f"{runner.name} began {since_s} s after who had the card, which was not given back")
        self.check()
        return next(self.fates)

    def check(self) -> None:
        """No two owners of a device, never over the budget."""
        alive = [r for r in self.runners if r.exists]
        groups = [r.spec.unit.exclusive for r in alive if r.spec.unit.exclusive is not None]
        used = sum(needs_bytes(r.spec.unit.memory).get("ram", 0) for r in alive)
        wrong = [f"two owners: {[r.name for r in alive]}"] if len(groups) != len(set(groups)) else []
        wrong += [f"{used} of {self.budget}: {[r.name for r in alive]}"] if used > self.budget else []
        self.broken += wrong
        assert wrong == []


def on_card(runner: Runner) -> int:
    """Bytes that a process of `runner` holds of the card."""
    return needs_bytes(runner.spec.unit.memory).get(CARD, 0)


class Simulated(Runner):
    """A runner whose process is a thought."""

    def __init__(self, spec: ProcessSpec, home: SharedContext, world: World) -> None:
        super().__init__(spec, home)
        self.exists = False
        self.placed = False
        """It is being started by somebody, and not by itself after a failure."""
        self._world = world
        self._end_s = 0.0
        self._process_number = 0
        world.runners.append(self)

    def start(self) -> None:
        """As a real one."""
        self.placed = True
        super().start()
        self.placed = False

    def stop(self, why: str, *, force: bool = False) -> None:
        """As a real one; a victim is neither busy nor always on."""
        if why == "evicted":
            assert not self.busy, f"{self.name} was busy"
            assert self.spec.unit.start != "boot" or self.spec.unit.exclusive is not None, f"{self.name} was pinned"
        super().stop(why, force=force)

    def crash(self) -> None:
        """Its process ends by itself."""
        self._end(self._process_number)

    def _act(self, action: Action) -> None:
        """Simulate one action."""
        loop = asyncio.get_running_loop()
        if action == "spawn":
            assert not self.exists
            self.exists = True
            self._process_number += 1
            becomes_ready, after_s, self._end_s = self._world.spawn(self)
            what: Callable[..., Any] = self._is_ready if becomes_ready else self._end
            loop.call_later(after_s, what, self._process_number)
        elif action == "terminate":
            loop.call_later(self._end_s, self._end, self._process_number)
        elif action == "kill":
            loop.call_later(0.01, self._end, self._process_number)

    def _is_ready(self, number: int) -> None:
        """Readiness is proven."""
        if self.exists and number == self._process_number:
            self.dispatch(Ready())

    def _end(self, number: int) -> None:
        """The process is gone."""
        if self.exists and number == self._process_number:
            self.exists = False
            if on_card(self):
                self._world.left.append((asyncio.get_running_loop().time(), on_card(self)))
            self.dispatch(Exited("it ended", 0.5))
