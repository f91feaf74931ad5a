"""Out of memory while serving: one rung down, the request asked again; and up again when there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from launcher.supervise import events
from launcher.supervise.runner import Runner

OUT_OF_MEMORY = "supervise/out-of-memory"
_LOOK_S = 1.0


async def retry_after_oom(runner: Runner, since: float, said: str, drain_timeout_s: float) -> bool:
    """Whether a request that failed may be asked again, because its server ran out of memory and is started with less.

    `since`: when the request was sent, a time of the loop. `said`: the server's own words, when it lives and answered
    that it is out of memory; then it is drained and started anew. A server without a rung left gives no chance.
    """
    rungs = runner.rungs
    if not rungs.planned.rungs:
        return False
    if said and rungs.left and not rungs.slipped_since(since):
        await runner.drain(drain_timeout_s)
        if not rungs.slipped_since(since) and runner.life.state in ("ready", "sleeping"):
            runner.broken(f"out of memory in a request: {said}", OUT_OF_MEMORY)
    if said and not rungs.left and not rungs.slipped_since(since):
        return False
    return await rungs.slips(since)


async def watch_ladders(runners: Mapping[str, Runner], available: Callable[[], Mapping[str, int]]) -> None:
    """Until cancelled: have servers that no request is in climb, one rung at a time, when there is room.

    `available` gives what the system reports as free, bytes by device, for the devices it knows.
    """
    while True:
        await asyncio.sleep(_LOOK_S)
        for runner in tuple(runners.values()):
            if runner.rungs.standing.rung and not runner.life.closed:
                climb_if_free(runner, available())


def climb_if_free(runner: Runner, available: Mapping[str, int]) -> bool:
    """One rung up, if nothing is in it, its time has come and `available` is enough; whether it climbs."""
    running = runner.usable
    if runner.busy or not (running or runner.life.state in ("stopped", "failed")):
        return False
    if not runner.rungs.climb(available, running=running):
        return False
    runner.emit(events.RungTaken(name=runner.spec.name, rung=runner.rungs.label, why="there is room again"))
    if running:
        # The stop is followed by a start at once: no wake finds it stopped between the two.
        runner.stop("climb")
        runner.start()
    return True
