"""Admission to one upstream: as many requests as it has slots, the rest wait in order, bounded, with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from launcher.route.problem import HttpError


class Gate:
    """Slots of one upstream. `acquire`/`release` pair up; waiters are served first come, first served."""

    __slots__ = ("in_flight", "slots", "waiters")

    def __init__(self, slots: int) -> None:
        """At least one slot."""
        self.slots = max(1, slots)
        self.in_flight = 0
        self.waiters: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """Slots nobody holds or waits for; negative when requests queue."""
        return self.slots - self.in_flight - len(self.waiters)

    def try_acquire(self) -> bool:
        """Take a slot now, if one is free and nobody was here before."""
        if self.in_flight < self.slots and not self.waiters:
            self.in_flight += 1
            return True
        return False

    async def acquire(self, *, queue_size: int, timeout_s: float) -> None:
        """Take a slot, waiting at most `timeout_s` behind at most `queue_size` others.

        Raises HttpError 503 `queue_full` or `queue_timeout`. A cancelled waiter leaves the queue.
        """
        if self.try_acquire():
            return
        if len(self.waiters) >= queue_size:
            raise HttpError(503, "queue_full", f"{queue_size} requests are waiting already", retry_after_s=1)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                with contextlib.suppress(ValueError):  # _grant drops cancelled waiters too
                    self.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                message = f"no slot became free within {timeout_s:g} s"
                raise HttpError(503, "queue_timeout", message, retry_after_s=1) from None
            raise

    def release(self) -> None:
        """Give a slot back; the first waiter gets it."""
        self.in_flight -= 1
        self._grant()

    def resize(self, slots: int) -> None:
        """Another number of slots from now on; who holds one keeps it."""
        self.slots = max(1, slots)
        self._grant()

    def _grant(self) -> None:
        """Hand free slots to waiters."""
        while self.waiters and self.in_flight < self.slots:
            waiter = self.waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)
