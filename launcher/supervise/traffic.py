"""The requests in one process: how many, how many are promised, and how they come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Traffic:
    """What requests do to a process; `draining` means that it takes no more of them."""

    def __init__(self) -> None:
        """Nobody is there."""
        self.in_flight = 0
        self.leases = 0
        """Waiters that were promised this server and have not entered yet."""
        self.last_used = 0.0
        self.last_ok = 0.0
        self._draining = False
        self._stir: asyncio.Event | None = None

    @property
    def draining(self) -> bool:
        """Whether it takes no more requests, because it is about to be stopped."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self.stir()

    @property
    def busy(self) -> bool:
        """Whether a request is in it, or promised to it."""
        return self.in_flight > 0 or self.leases > 0

    def enter(self) -> None:
        """A request begins."""
        self.in_flight += 1

    def leave(self, *, ok: bool) -> None:
        """A request ended."""
        self.in_flight -= 1
        self.last_used = asyncio.get_running_loop().time()
        if ok:
            self.last_ok = self.last_used
        self.stir()

    def stir(self) -> None:
        """Let who waits look again: a request or a promise ended, or the process changed."""
        if self._stir is not None:
            self._stir.set()
            self._stir = None

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait until none is in flight; False when `timeout_s` passed first.

        Who was promised this server enters first: else two servers that are swapped in turn never serve anybody.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_while(lambda: self.leases > 0)
                self.draining = True
                await self.wait_while(lambda: self.busy)
        except TimeoutError:
            return False
        finally:
            self.draining = True
        return True

    async def wait_while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`, looked at after every `stir`."""
        while holds():
            if self._stir is None:
                self._stir = asyncio.Event()
            await self._stir.wait()
