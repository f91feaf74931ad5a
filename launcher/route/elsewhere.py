"""Servers on other hosts, asked beside those of this runtime. Pure."""

from __future__ import annotations

from launcher.ir.fleet import RoutingTable
from launcher.ir.live import ServerState, Upstreams


class WithElsewhere:
    """`own`, and servers that other hosts run: those count as ready, and asking them tells (breaker, fallback)."""

    def __init__(self, own: Upstreams, elsewhere: frozenset[str]) -> None:
        """`elsewhere`: names of servers that `own` knows nothing of."""
        self._own = own
        self._elsewhere = elsewhere

    def state(self, name: str) -> ServerState:
        """As `own` says; ready where another host runs it."""
        return "ready" if name in self._elsewhere else self._own.state(name)

    async def wake(self, name: str, timeout_s: float) -> None:
        """As `own` does; who runs elsewhere is not started from here."""
        if name not in self._elsewhere:
            await self._own.wake(name, timeout_s)

    def enter(self, name: str) -> None:
        """A request to `name` begins."""
        if name not in self._elsewhere:
            self._own.enter(name)

    def leave(self, name: str, *, ok: bool) -> None:
        """A request to `name` ended."""
        if name not in self._elsewhere:
            self._own.leave(name, ok=ok)

    async def second_chance(self, name: str, since: float, said: str = "") -> bool:
        """As `own` says; who runs elsewhere is not started from here."""
        return name not in self._elsewhere and await self._own.second_chance(name, since, said)


def with_elsewhere(own: Upstreams, table: RoutingTable) -> Upstreams:
    """`own` and the targets of `table` on other hosts; `own` itself where there are none."""
    elsewhere = frozenset(name for name, target in table.targets.items() if target.on)
    return WithElsewhere(own, elsewhere) if elsewhere else own
