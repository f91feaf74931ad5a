"""Servers on other hosts, asked beside those of this runtime. Pure."""

from __future__ import annotations

from launcher.ir.fleet import RoutingTable
from launcher.ir.live import Lease, ServerState, Upstreams


class WithElsewhere(Upstreams):
    """`own`, and servers that other hosts run: those count as ready, and asking them tells (breaker, fallback)."""

    def __init__(self, own: Upstreams, elsewhere: frozenset[str]) -> None:
        """`elsewhere`: names of servers that `own` knows nothing of."""
        self._own = own
        self._elsewhere = elsewhere

    def state(self, name: str) -> ServerState:
        """As `own` says; ready where another host runs it."""
        return "ready" if name in self._elsewhere else self._own.state(name)

    def try_lease(self, name: str) -> Lease | None:
        """As `own` does; who runs elsewhere always grants one."""
        return Lease(name) if name in self._elsewhere else self._own.try_lease(name)

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """As `own` does; who runs elsewhere is not started from here."""
        return Lease(name) if name in self._elsewhere else await self._own.acquire(name, timeout_s)

    async def retry_after_oom(self, name: str, since: float, said: str = "") -> bool:
        """As `own` says; who runs elsewhere is not started from here."""
        return name not in self._elsewhere and await self._own.retry_after_oom(name, since, said)


def with_elsewhere(own: Upstreams, table: RoutingTable) -> Upstreams:
    """`own` and the targets of `table` on other hosts; `own` itself where there are none."""
    elsewhere = frozenset(name for name, target in table.targets.items() if target.on)
    return WithElsewhere(own, elsewhere) if elsewhere else own
