"""The requests in one process: how many there are, and how they come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from launcher.ir.live import Lease


class InFlight:
    """What requests do to a process, and who waits for that."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.last_used = 0.0
        self.last_ok = 0.0
        self.ready_at = 0.0
        self._changed: asyncio.Event | None = None

    @property
    def busy(self) -> bool:
        """Whether a request holds it."""
        return self.in_flight > 0

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None: nobody need know."""
        return None

    def grant(self, name: str) -> Lease:
        """A lease on it as `name`, in flight from now on."""
        self.in_flight += 1
        return Lease(name, self._released, address=self.address)

    def _released(self, ok: bool) -> None:
        self.in_flight -= 1
        self.last_used = asyncio.get_running_loop().time()
        if ok:
            self.last_ok = self.last_used
        self.notify_waiters()

    def notify_waiters(self) -> None:
        """Have everybody in `wait_while` test the condition again: a request ended, or the process changed."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`, tested again after every `notify_waiters`."""
        while holds():
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()
