"""A start that holds no runtime's lock yet, and how whoever stops everything calls it off. I/O.

`up` compiles for a second before its runtime takes the lock. Whoever stops everything meanwhile leaves a time behind,
and a runtime whose start was asked for before that time does not go on: it takes the lock first and looks then, the
other leaves the time first and looks for locks then, so that one of them sees the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.files.atomic import write_atomic
from launcher.files.state import state_root

_STARTS = "starting.lock"
_CALLED_OFF = "called-off"


def asked_at_ns() -> int:
    """Now, in nanoseconds since boot: no change of the clock makes an older start look younger."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def start_under_way() -> Iterator[None]:
    """Within the block `call_off` knows of a start; the kernel forgets it when the process dies."""
    root = state_root()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(root / _STARTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # it cannot be said; where state can be written no more, the start itself will say so
        yield
        return
    try:
        # shared: several starts at once are several deployments, or else the runtime's lock decides
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def call_off() -> bool:
    """Call off every start that was asked for before now; whether there is one (not yet at its runtime's lock)."""
    root = state_root()
    if not root.is_dir():
        return False
    with contextlib.suppress(OSError):
        write_atomic(root / _CALLED_OFF, f"{_boot_id()} {asked_at_ns()}\n", mode=0o600)
    try:
        descriptor = os.open(root / _STARTS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_called_off(asked_ns: int) -> bool:
    """Whether everything was told to stop after `asked_ns`, in this boot."""
    try:
        boot, _, stamp = (state_root() / _CALLED_OFF).read_text().strip().partition(" ")
        return boot == _boot_id() and int(stamp) > asked_ns
    except (OSError, ValueError):
        return False


def _boot_id() -> str:
    """The kernel's id of this boot: its clock means nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
