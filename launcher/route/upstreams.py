"""Upstreams without a supervisor: servers on other hosts, and servers that another manager runs. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from launcher.base import claimed_name
from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import Lease, ServerState, Upstreams


class StaticUpstreams(Upstreams):
    """Every server counts as ready and nothing is started or stopped: a base class, and for tests."""

    def state(self, name: str) -> ServerState:  # noqa: ARG002  # the protocol's
        """Always ready: asking it shows whether it answers."""
        return "ready"

    def try_lease(self, name: str) -> Lease:
        """Always granted."""
        return Lease(name)

    async def acquire(self, name: str, timeout_s: float) -> Lease:  # noqa: ARG002  # the protocol's
        """Always granted."""
        return self.try_lease(name)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:  # noqa: ARG002  # the protocol's
        """Never: its manager restarts it unchanged."""
        return False


class AskedUpstreams(StaticUpstreams):
    """Servers of another manager: each new connection asks for the server's identity first."""

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:  # noqa: ARG002
        """Compare with what the server says of itself."""
        return claimed_name.wrong_server(name, await ask())


class RemoteAwareUpstreams(Upstreams):
    """`own`, and servers on other hosts, which count as ready: breaker and fallback see to failures."""

    def __init__(self, own: Upstreams, remote: frozenset[str]) -> None:
        """`remote`: names of servers that `own` does not know."""
        self._own = own
        self._remote = remote

    def state(self, name: str) -> ServerState:
        """As `own`; always ready for a remote server."""
        return "ready" if name in self._remote else self._own.state(name)

    def left_s(self, name: str) -> float | None:
        """As `own`; unknown for a remote server."""
        return None if name in self._remote else self._own.left_s(name)

    def ended_from_outside(self, name: str) -> bool:
        """As `own`; unknown for a remote server."""
        return name not in self._remote and self._own.ended_from_outside(name)

    def try_lease(self, name: str) -> Lease | None:
        """As `own`; always granted for a remote server."""
        return Lease(name) if name in self._remote else self._own.try_lease(name)

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """As `own`; a remote server is not started from here."""
        return Lease(name) if name in self._remote else await self._own.acquire(name, timeout_s)

    async def unload(self, name: str) -> None:
        """As `own`; a remote server is not stopped from here."""
        await (super().unload(name) if name in self._remote else self._own.unload(name))

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """As `own`; a remote server is asked."""
        if name in self._remote:
            return claimed_name.wrong_server(name, await ask())
        return await self._own.stranger(name, ask, peer)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """As `own`; a remote server is not restarted from here."""
        return name not in self._remote and await self._own.retry_after_oom(name, since, error_text)


def with_remote(own: Upstreams, table: RoutingTable) -> Upstreams:
    """`own` with the table's targets on other hosts and outside; `own` itself where there are none."""

    def is_remote(target: RouteTarget) -> bool:
        return bool(target.on) or (target.outside is not None and not target.outside.supervised)

    remote = frozenset(name for name, target in table.targets.items() if is_remote(target))
    return RemoteAwareUpstreams(own, remote) if remote else own
