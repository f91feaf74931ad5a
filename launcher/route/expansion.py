"""Pools that grow: another server of a pool is started when more requests are in flight than its threshold. I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from launcher.ir.fleet import RoutePool
from launcher.ir.live import UnavailableError, Upstreams
from launcher.route.target import SERVING, Target

_LOG = logging.getLogger("launch.route")


def thresholds(pools: Iterable[RoutePool], tiers: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Names with several servers of one pool → requests in flight above which one more of them is started."""
    growing = [(frozenset(pool.servers), pool.expansion_threshold) for pool in pools if pool.expansion_threshold > 0]
    return {
        name: threshold
        for name, servers in tiers.items()
        if len(servers) > 1
        for members, threshold in growing
        if members.issuperset(servers)
    }


class Expansion:
    """The starts that are under way because a pool is busy. No request waits for them."""

    def __init__(self) -> None:
        """None."""
        self._starts: dict[str, asyncio.Task[None]] = {}

    def consider(self, targets: Sequence[Target], threshold: int, upstreams: Upstreams) -> None:
        """One more request comes for `targets`: start the next of them where they are too busy.

        A member of an exclusive group is never started so: that would stop the one that is busy.
        """
        serving = [t for t in targets if upstreams.state(t.name) in SERVING]
        in_flight = sum(t.gate.in_flight + len(t.gate.waiters) for t in serving)
        if not serving or in_flight < threshold or any(t.name in self._starts for t in targets):
            return
        for target in targets:
            unit = target.unit
            if unit.start == "demand" and unit.exclusive is None and upstreams.state(target.name) == "stopped":
                start = asyncio.get_running_loop().create_task(self._start(target, upstreams))
                self._starts[target.name] = start
                start.add_done_callback(lambda _, name=target.name: self._starts.pop(name, None))  # type: ignore[misc]
                return

    async def _start(self, target: Target, upstreams: Upstreams) -> None:
        """Start a server; that it cannot be is not a request's affair."""
        try:
            async with upstreams.lease(target.name, target.unit.request_timeout_s):
                pass  # it was started: that is all
        except UnavailableError as error:
            _LOG.warning("the pool does not grow by %s: %s", target.name, error.message)

    def close(self) -> None:
        """Wait for none of them any more."""
        for start in self._starts.values():
            start.cancel()
