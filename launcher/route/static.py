"""Upstreams that somebody else keeps running: every server counts as ready. Pure."""

from __future__ import annotations

from collections import defaultdict

from launcher.ir.live import Lease, ServerState, Upstreams


class StaticUpstreams(Upstreams):
    """For systemd mode, tests and benchmarks: nothing is started or stopped here."""

    def __init__(self) -> None:
        """Nothing in flight."""
        self.in_flight: defaultdict[str, int] = defaultdict(int)

    def state(self, name: str) -> ServerState:  # noqa: ARG002  # the protocol's
        """Always ready: whether it answers is found out by asking it."""
        return "ready"

    def try_lease(self, name: str) -> Lease:
        """Always granted."""
        self.in_flight[name] += 1
        return Lease(name, lambda _: self._end(name))

    async def acquire(self, name: str, timeout_s: float) -> Lease:  # noqa: ARG002  # the protocol's
        """Nothing to start."""
        return self.try_lease(name)

    async def retry_after_oom(self, name: str, since: float, said: str = "") -> bool:  # noqa: ARG002  # the protocol's
        """Whoever keeps the servers running starts them as they are."""
        return False

    def _end(self, name: str) -> None:
        self.in_flight[name] -= 1
