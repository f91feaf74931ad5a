"""A front of a cluster as a process, started again whenever it ended, as its kubelet would."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path


class FrontPod:
    """One of several fronts. `address`: where it is reached; `api`: where it reaches the API server.

    `inside` stands before its program: what puts it into another network.
    """

    def __init__(
        self, name: str, directory: Path, address: tuple[str, int], api: tuple[str, int], inside: tuple[str, ...] = ()
    ) -> None:
        """Not started. `directory` has its `deployment`, and gets its state and log."""
        self.name = name
        self.address = address
        self.url = f"http://{address[0]}:{address[1]}"
        self.starts = 0
        self.ends: list[float] = []
        """When a process of it ended, on the monotonic clock."""
        self.process: asyncio.subprocess.Process | None = None
        self._api = api
        self._inside = inside
        self._directory = directory
        self._keeping: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Start it, and again."""
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End it for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def _keep(self) -> None:
        own = {"KUBERNETES_SERVICE_HOST": self._api[0], "KUBERNETES_SERVICE_PORT": str(self._api[1])}
        state = {"LAUNCH_STATE_DIR": str(self._directory / "state"), "POD_NAME": self.name, "POD_IP": self.address[0]}
        program = (*self._inside, sys.executable, "-m", "launcher.runtime", str(self._directory / "deployment"))
        with (self._directory / "log").open("ab") as log:
            while True:
                self.starts += 1
                self.process = await asyncio.create_subprocess_exec(
                    *program, env=os.environ | own | state, stdout=log, stderr=log
                )
                await self.process.wait()
                self.ends.append(time.monotonic())
                await asyncio.sleep(0.2)
