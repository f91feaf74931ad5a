"""Pools that grow: another server of a pool is started when more requests are in flight than its threshold. I/O."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence

from launcher.ir.events import Happened
from launcher.ir.live import UnavailableError, Upstreams
from launcher.route.target import SERVING, Target

_LOG = logging.getLogger("launch.route")


class Expansion:
    """The starts under way because a pool is busy. No request waits for them."""

    def __init__(self) -> None:
        self.emit: Callable[[Happened], None] = lambda _: None
        """Called with the reason whenever a server is started."""
        self._starts: dict[str, asyncio.Task[None]] = {}

    def consider(self, targets: Sequence[Target], threshold: int, upstreams: Upstreams) -> None:
        """One more request arrives for `targets`: start the next of them if the running ones are too busy.

        A member of an exclusive group is never started this way: that would stop the busy one.
        """
        serving = [t for t in targets if upstreams.state(t.name) in SERVING]
        in_flight = sum(t.gate.in_flight + len(t.gate.waiters) for t in serving)
        if not serving or in_flight < threshold or any(t.name in self._starts for t in targets):
            return
        for target in targets:
            unit = target.unit
            if unit.start == "demand" and unit.exclusive is None and upstreams.state(target.name) == "stopped":
                self.emit(
                    Happened(
                        kind="expansion",
                        name=target.name,
                        message=f"is started beside {', '.join(t.name for t in serving)}",
                        cause=f"{in_flight} requests run or wait there, its pool grows at {threshold}",
                        details={"in_flight": in_flight, "threshold": threshold},
                    )
                )
                start = asyncio.get_running_loop().create_task(self._start(target, upstreams))
                self._starts[target.name] = start
                start.add_done_callback(functools.partial(self._ended, target.name, targets, threshold, upstreams))
                return

    def _ended(
        self, name: str, targets: Sequence[Target], threshold: int, upstreams: Upstreams, start: asyncio.Task[None]
    ) -> None:
        """A start is over: requests that wait may justify another one, and perhaps no new request arrives."""
        self._starts.pop(name, None)
        if not start.cancelled() and upstreams.state(name) in SERVING:
            self.consider(targets, threshold, upstreams)

    async def _start(self, target: Target, upstreams: Upstreams) -> None:
        """Start a server; if that fails, no request fails with it."""
        try:
            async with upstreams.lease(target.name, target.unit.request_timeout_s):
                target.gate.take_over(target.gate.slots)  # those who wait for the others come here
        except UnavailableError as error:
            _LOG.warning("the pool does not grow by %s: %s", target.name, error.message)

    def close(self) -> None:
        """Stop waiting for the starts under way."""
        for start in self._starts.values():
            start.cancel()
