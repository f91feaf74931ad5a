"""What stands in for a supervisor: servers on other hosts, and servers that somebody else keeps running. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from launcher.base import claimed_name
from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import Lease, ServerState, Upstreams


class StaticUpstreams(Upstreams):
    """Every server counts as ready, nothing is started or stopped here: the base of what follows, and for tests."""

    def state(self, name: str) -> ServerState:  # noqa: ARG002  # the protocol's
        """Always ready: whether it answers is found out by asking it."""
        return "ready"

    def try_lease(self, name: str) -> Lease:
        """Always granted."""
        return Lease(name)

    async def acquire(self, name: str, timeout_s: float) -> Lease:  # noqa: ARG002  # the protocol's
        """Nothing to start."""
        return self.try_lease(name)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:  # noqa: ARG002  # the protocol's
        """Whoever keeps the servers running starts them as they are."""
        return False


class AskedUpstreams(StaticUpstreams):
    """Servers whose processes somebody else owns: each is asked who it is before the first request of a connection."""

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:  # noqa: ARG002
        """As the server says."""
        return claimed_name.stranger(name, await ask())


class RemoteAwareUpstreams(Upstreams):
    """`own`, and servers that other hosts run: those count as ready, and asking them tells (breaker, fallback)."""

    def __init__(self, own: Upstreams, remote: frozenset[str]) -> None:
        """`remote`: names of servers that `own` knows nothing of."""
        self._own = own
        self._remote = remote

    def state(self, name: str) -> ServerState:
        """As `own` says; ready where another host runs it."""
        return "ready" if name in self._remote else self._own.state(name)

    def left_s(self, name: str) -> float | None:
        """As `own` says; of another host it is not known."""
        return None if name in self._remote else self._own.left_s(name)

    def ended_from_outside(self, name: str) -> bool:
        """As `own` says; of another host it is not known."""
        return name not in self._remote and self._own.ended_from_outside(name)

    def try_lease(self, name: str) -> Lease | None:
        """As `own` does; a remote server always grants one."""
        return Lease(name) if name in self._remote else self._own.try_lease(name)

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """As `own` does; a remote server is not started from here."""
        return Lease(name) if name in self._remote else await self._own.acquire(name, timeout_s)

    async def unload(self, name: str) -> None:
        """As `own` does; a remote server is not stopped from here."""
        await (super().unload(name) if name in self._remote else self._own.unload(name))

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """As `own` says; a remote server is asked."""
        if name in self._remote:
            return claimed_name.stranger(name, await ask())
        return await self._own.stranger(name, ask, peer)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """As `own` says; a remote server is not started from here."""
        return name not in self._remote and await self._own.retry_after_oom(name, since, error_text)


def with_remote(own: Upstreams, table: RoutingTable) -> Upstreams:
    """`own` and the targets of `table` on other hosts, or not ours; `own` itself where there are none."""

    def is_remote(target: RouteTarget) -> bool:
        return bool(target.on) or (target.outside is not None and not target.outside.supervised)

    remote = frozenset(name for name, target in table.targets.items() if is_remote(target))
    return RemoteAwareUpstreams(own, remote) if remote else own
