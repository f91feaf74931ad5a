"""Out of memory while serving: down one level, and the request is retried; up again when there is room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from launcher.ir.live import UnavailableError
from launcher.supervise import events
from launcher.supervise.fallbacks import OUT_OF_MEMORY
from launcher.supervise.readiness import healthy
from launcher.supervise.runner import Runner

_NOTICE_S = 5.0
"""How long a process may take to end after its connection broke: it may write a core, or a trace, and is mute then."""


async def retry_after_oom(runner: Runner, since: float, error_text: str, drain_timeout_s: float) -> bool:
    """Whether a failed request may be retried: its server ran out of memory and is restarted at a smaller level.

    `since`: when the request got its lease (loop time); the server may have ended before it was sent. `error_text`: the
    message of a server that lives and answered that it is out of memory; it is then drained and restarted. False when
    no fallback is left.
    """
    fallbacks = runner.fallbacks
    if not fallbacks.planned.fallbacks:
        return False
    if error_text and fallbacks.left and not fallbacks.degraded_since(since):
        await runner.drain(drain_timeout_s)
        if not fallbacks.degraded_since(since) and runner.life.state in ("ready", "sleeping"):
            runner.broken(f"out of memory in a request: {error_text}", OUT_OF_MEMORY)
    if error_text and not fallbacks.left and not fallbacks.degraded_since(since):
        return False
    pid = runner.pid

    def may_end() -> bool:
        return pid is not None and runner.pid == pid and not fallbacks.degraded_since(since)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_NOTICE_S):  # until it is known how the process ended, or that it lives on
            lives = may_end() and runner.life.usable and await healthy(runner.spec, _NOTICE_S)
            await runner.wait_while(lambda: may_end() and not lives)
    return fallbacks.degraded_since(since)


def restore_if_free(runner: Runner, available: Mapping[str, int]) -> bool:
    """Go one level up, if no request is in the server, its pause is over and `available` is enough.

    Returns whether it did.
    """
    running = runner.life.usable
    if runner.busy or not (running or runner.life.state in ("stopped", "failed")):
        return False
    if not runner.fallbacks.restore(available, running=running):
        return False
    runner.emit(events.RungTaken(name=runner.name, rung=runner.fallbacks.label, why="there is room again"))
    if running:
        # The stop is followed by a start at once: no wake finds it stopped between the two.
        runner.stop("restore")
        runner.start()
    return True


async def change_rung(runner: Runner, drain_timeout_s: float, *, down: bool) -> None:
    """Go one level down, or back to the plan, for an operator; a running server is drained, restarted, waited for.

    Raises UnavailableError if there is no such level, or while the server starts or ends.
    """
    name, fallbacks = runner.name, runner.fallbacks
    if down and not fallbacks.left:
        raise UnavailableError("no_rung", f"{name} has no smaller setting left")
    if not down and not fallbacks.degradation.level:
        raise UnavailableError("no_rung", f"{name} runs as planned")
    level = fallbacks.degradation.level
    settled = ("ready", "sleeping", "stopped", "failed")
    if runner.life.state not in settled:
        raise UnavailableError("server_busy", f"{name} is {runner.life.shown}: try again when it is ready")
    runner.mark("returning", on=True)  # requests wait for it
    try:
        if runner.life.state in ("ready", "sleeping"):
            await runner.drain(drain_timeout_s)
        if runner.life.state not in settled or fallbacks.degradation.level != level:
            raise UnavailableError("server_busy", f"{name} changed meanwhile")
        again = runner.life.state in ("ready", "sleeping")
        if again:
            runner.stop("changed")
            await runner.until("stopped", "failed")
        fallbacks.by_hand(down=down)
        runner.emit(events.RungTaken(name=name, rung=fallbacks.label, why="somebody asked for it", by_hand=True))
        runner.mark("draining", on=False)
        if again:
            runner.start()
            await runner.until("ready", "sleeping", "stopped", "failed")
    finally:
        runner.mark("draining", on=False)
        runner.mark("returning", on=False)
