"""Upstreams that somebody else keeps running: every server counts as ready. Pure."""

from __future__ import annotations

from collections import defaultdict

from launcher.ir.live import ServerState


class StaticUpstreams:
    """For systemd mode, tests and benchmarks: nothing is started or stopped here."""

    def __init__(self) -> None:
        """Nothing in flight."""
        self.in_flight: defaultdict[str, int] = defaultdict(int)

    def state(self, name: str) -> ServerState:  # noqa: ARG002  # the protocol's
        """Always ready: whether it answers is found out by asking it."""
        return "ready"

    async def wake(self, name: str, timeout_s: float) -> None:
        """Nothing to start."""

    def enter(self, name: str) -> None:
        """A request to `name` begins."""
        self.in_flight[name] += 1

    def leave(self, name: str, *, ok: bool) -> None:  # noqa: ARG002  # the protocol's
        """A request to `name` ended."""
        self.in_flight[name] -= 1

    async def second_chance(self, name: str, since: float, said: str = "") -> bool:  # noqa: ARG002  # the protocol's
        """Whoever keeps the servers running starts them as they are."""
        return False
