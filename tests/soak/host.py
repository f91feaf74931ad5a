"""The real runtime as a process that tells what it holds: `python -m tests.soak.host DEPLOYMENT FIGURES`.

On SIGUSR1 it writes tasks, descriptors, resident bytes and the number of Python's objects to FIGURES, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from launcher.files import write_atomic
from launcher.runtime.fleet import Runtime
from launcher.supervise.events import AnyEvent, encode_event
from launcher.supervise.procfs import memory_bytes


def tell(event: AnyEvent) -> None:
    """Events as lines on stderr."""
    os.write(2, encode_event(event))


def write_figures(target: Path) -> None:
    """What the process holds now."""
    gc.collect()
    tasks = sorted(getattr(t.get_coro(), "__qualname__", "?") for t in asyncio.all_tasks())
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    figures = {
        "tasks": tasks,
        "descriptors": descriptors,
        "resident": memory_bytes(os.getpid())["ram"],
        "objects": len(gc.get_objects()),
    }
    write_atomic(target, json.dumps(figures))


async def main(deployment: Path, figures: Path) -> None:
    """Run until told to end."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write_figures, figures)
    await Runtime(deployment, tell).main()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
