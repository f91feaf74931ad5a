"""One change of what is installed at a time: two would each write a part of it. I/O."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.install.layout import Layout

NAME = "launch-install.lock"


@contextlib.contextmanager
def alone(layout: Layout, say: Callable[[str], None], *, runtime_dir: Path | None = None) -> Iterator[None]:
    """Hold the lock of `layout`'s machine or user within the block; waits for who has it, and says so.

    It is a file below /run that only its owner opens, and goes with the block; the kernel drops it with the process. A
    tree that does not run is nobody's to change twice. Raises OSError.
    """
    usual = Path("/run") if layout.scope == "system" else Path(f"/run/user/{os.getuid()}")
    folder = runtime_dir or usual
    if layout.root != Path("/") or not folder.is_dir():
        yield
        return
    path = folder / NAME
    descriptor = _locked(path, say)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, say: Callable[[str], None]) -> int:
    """A descriptor of the file that is at `path` now, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another install, uninstall or reload is under way: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116 - beside fstat
                return descriptor
        os.close(descriptor)  # who had it took it away
