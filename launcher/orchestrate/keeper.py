"""The project memory for an event loop: its calls run one after another in a thread of their own. I/O."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from launcher.ir.exchange import Refusal
from launcher.orchestrate.memory import Memory

P = ParamSpec("P")
T = TypeVar("T")


class Keeper:
    """A Memory whose disk writes do not hold the loop up. A call that was begun is done, whoever waits for it."""

    def __init__(self, memory: Memory) -> None:
        """Takes the memory over: nobody else calls it from now on."""
        self.memory = memory
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")

    async def do(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the memory, after all that were asked for before. Raises Refusal where the disk fails.

        Who is cancelled meanwhile still waits until the call is done.
        """
        call = functools.partial(method, *args, **kwargs)
        try:
            done = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._thread, call))
        except RuntimeError:
            raise Refusal(503, "front_stopping", "the project memory is closed") from None
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait({done})
            raise
        except sqlite3.Error as error:
            raise Refusal(503, "memory_failed", f"the project memory cannot be used: {error}") from error

    def close(self) -> None:
        """Finish what was asked for, then close the file."""
        self._thread.shutdown(wait=True)
        self.memory.close()
