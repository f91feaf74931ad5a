"""Periodic checks while the fleet serves: health, idleness, memory, log sizes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from launcher.base import procfs
from launcher.ir.fleet import SupervisorUnit
from launcher.supervise import peers, readiness
from launcher.supervise.lifecycle import Slept
from launcher.supervise.measuring import Measurer
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.recovery import restore_if_free
from launcher.supervise.room import available_bytes
from launcher.supervise.runner import Runner

_ASK_MIN_S = 0.5
_PULSE_S = 0.25
_SUSPENDED_S = 3.0
"""Seconds that a process may be stopped by a signal (a debugger looks at it) before it is restarted."""
_AGAIN = contextlib.suppress(OSError)
"""No descriptor is left to look with: the next look is tried all the same."""
_SERVING = ("ready", "sleeping")
_SLEEP_FLAG = "--sleep-idle-seconds"
_MEASURE_S = 5.0
_SHARE = 50
"""Measuring takes at most a fiftieth of the time: the page tables of a big model take a second to walk."""


@dataclass(eq=False, kw_only=True)
class Upkeep:
    """Loops over `runners`, a live view, from `start` to `stop`.

    `fill_groups` is called after idle servers were stopped; `adopt_foreign` every `health_interval_s`, if others can
    start our processes (systemd).
    """

    runners: Mapping[str, Runner]
    owner: ProcessOwner
    settings: SupervisorUnit
    measurer: Measurer
    fill_groups: Callable[[], Awaitable[None]]
    adopt_foreign: Callable[[], Awaitable[None]]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start the loops; a second call does nothing."""
        if not self.tasks:
            loops = [self._watch_pulse(), self._watch_health(), self._tidy(), self._measure()]
            if self.owner.outlives:
                loops.append(self._watch_behind())
            self.tasks = [asyncio.get_running_loop().create_task(work) for work in loops]

    def stop(self) -> None:
        """End all loops."""
        for task in self.tasks:
            task.cancel()
        self.tasks = []

    async def _watch_pulse(self) -> None:
        """Keep requests away from a process that is stopped by a signal; one that stays so is restarted.

        A check costs a read of /proc; /health would show it only after seconds.
        """
        since: dict[int, float] = {}
        while True:
            await asyncio.sleep(_PULSE_S)
            now = asyncio.get_running_loop().time()
            known, since = since, {}
            for runner in tuple(self.runners.values()):
                pid = runner.pid if runner.life.state in _SERVING else None
                suspended = pid is not None and runner.life.suspended
                with _AGAIN:
                    suspended = pid is not None and procfs.is_suspended(pid)
                if runner.life.suspended != suspended:
                    runner.mark("suspended", on=suspended)
                if pid is not None and suspended:
                    since[pid] = known.get(pid, now)
                    if now - since[pid] >= _SUSPENDED_S:
                        reason = f"its process was stopped by a signal for {_SUSPENDED_S:g} s"
                        runner.broken(reason, "supervise/suspended")

    async def _watch_health(self) -> None:
        """Every `health_interval_s`, check every ready process, and start failed ones whose peers are back."""
        while True:
            await asyncio.sleep(self.settings.health_interval_s)
            everyone = tuple(self.runners.values())
            with _AGAIN:
                await asyncio.gather(
                    *(self._check(r) for r in everyone if r.life.usable),
                    *(_start_with_peers(r) for r in everyone if r.life.state == "failed"),
                )

    async def _watch_behind(self) -> None:
        while True:
            await asyncio.sleep(self.settings.health_interval_s)
            with _AGAIN:
                await self.adopt_foreign()

    async def _check(self, runner: Runner) -> None:
        """One health check; `health_failures` in a row restart the process. An answered request proves health, too."""
        asked_at, ready_at, unit = asyncio.get_running_loop().time(), runner.ready_at, runner.spec.unit
        ask_s = max(_ASK_MIN_S, self.settings.health_interval_s)
        answered = await readiness.healthy(runner.spec, ask_s)
        if runner.ready_at != ready_at or not runner.life.usable:
            return
        if unit.peers and (gone := peers.lost(unit.peers)):
            runner.broken(f"its connection to {', '.join(gone)} is lost", "supervise/peer-lost")
            return
        if answered or runner.last_ok >= asked_at:
            runner.unhealthy = 0
            if _SLEEP_FLAG in unit.argv:
                asleep = await readiness.asleep(runner.spec, ask_s)
                if asleep is not None:
                    runner.dispatch(Slept(asleep))
            return
        runner.unhealthy += 1
        if runner.unhealthy >= self.settings.health_failures:
            reason = f"{unit.health_path} did not answer {runner.unhealthy} times in a row"
            runner.broken(reason, "supervise/unhealthy")

    async def _tidy(self) -> None:
        """Stop servers idle for too long, restore fallback levels, keep logs below their limit."""
        while True:
            idle_limits = [r.spec.unit.idle_timeout_s for r in self.runners.values() if r.spec.unit.idle_timeout_s > 0]
            await asyncio.sleep(max(0.05, min([1.0, *(limit / 4 for limit in idle_limits)])))
            now = asyncio.get_running_loop().time()
            for runner in tuple(self.runners.values()):
                if runner.tenant(now).idle_too_long:
                    runner.stop("idle")
                if runner.fallbacks.degradation.level and not runner.life.closed:
                    with _AGAIN:
                        restore_if_free(runner, available_bytes())
                await self.owner.trim_log(runner.name)
            with _AGAIN:
                await self.fill_groups()

    async def _measure(self) -> None:
        while True:
            begun = time.monotonic()
            running = {r.pid: r.spec.unit.argv for r in self.runners.values() if r.pid}
            with _AGAIN:
                self.measurer.figures = await asyncio.to_thread(self.measurer.measure, running)
            await asyncio.sleep(max(_MEASURE_S, _SHARE * (time.monotonic() - begun)))


def _waits_for_peers(runner: Runner) -> bool:
    """Whether only a missing peer keeps it from running."""
    is_missing = runner.failure is not None and runner.failure.code == peers.MISSING
    return runner.life.state == "failed" and runner.life.wanted and is_missing


async def _start_with_peers(runner: Runner) -> None:
    """Start `runner` if it waits for peers, and all of them answer."""
    if _waits_for_peers(runner) and not await peers.absent(runner.spec.unit.peers) and _waits_for_peers(runner):
        runner.start()
