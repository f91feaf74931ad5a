"""The real runtime as a process that tells what it holds: `python -m tests.soak.host DEPLOYMENT FIGURES`.

On SIGUSR1 it writes tasks, descriptors, bytes that are allocated and those that are resident, and the number of
Python's objects to FIGURES, as JSON. With Python's allocator off (`PYTHONMALLOC=malloc`) and one arena, what glibc has
given out is all that Python and its libraries hold, without what lies between. LAUNCH_SOAK_LEAK plants a leak.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from launcher.base.procfs import memory_bytes
from launcher.files import write_atomic
from launcher.route.clients import Clients, Member
from launcher.runtime.fleet import Runtime
from launcher.supervise.events import AnyEvent, encode_event

LEAK = "LAUNCH_SOAK_LEAK"
_LEAKED: list[bytes] = []


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2` (malloc.h)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _MallInfo


def allocated() -> int:
    """Bytes that malloc has given out: in its heap, and mapped."""
    info = _LIBC.mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def plant_leak(count: int) -> None:
    """Keep so many bytes of every connection that ends."""
    ended = Clients.ended

    def leaking(self: Clients, connection: Member) -> None:
        _LEAKED.append(bytes(count))
        ended(self, connection)

    Clients.ended = leaking  # type: ignore[method-assign]


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
        "allocated": allocated(),
        "resident": memory_bytes(os.getpid())["ram"],
        "objects": len(gc.get_objects()),
    }
    write_atomic(target, json.dumps(figures))


async def main(deployment: Path, figures: Path) -> None:
    """Run until told to end."""
    if leak := int(os.environ.get(LEAK, "0")):
        plant_leak(leak)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write_figures, figures)
    await Runtime(deployment, tell).main()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
