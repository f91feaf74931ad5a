"""Who listens on a TCP port: to name a stranger, and to know that the listener is our child."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from launcher.supervise import procfs
from launcher.supervise.listeners import listening_inodes


class PortOwner(msgspec.Struct, frozen=True, kw_only=True):
    """A process that listens on `port`. `pid` is None when it is not ours to see."""

    port: int
    pid: int | None
    name: str

    def __str__(self) -> str:
        """`llama-server (pid 4711)`."""
        return f"{self.name} (pid {self.pid})" if self.pid is not None else self.name


def holds_socket(pid: int, inodes: frozenset[str]) -> bool:
    """Whether `pid` has one of the sockets open, as far as we may look."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    directory = f"/proc/{pid}/fd"
    try:
        entries = os.listdir(directory)  # noqa: PTH208 - done for every process; Path objects double its time
    except OSError:
        return False
    for entry in entries:
        try:
            if os.readlink(f"{directory}/{entry}") in wanted:  # noqa: PTH115 - as above
                return True
        except OSError:
            continue
    return False


def listens(pid: int, port: int) -> bool:
    """Whether the process `pid`, or one of its session, listens on `port`."""
    inodes = listening_inodes(port)
    if not inodes:
        return False
    if holds_socket(pid, inodes):
        return True
    return any(holds_socket(member.pid, inodes) for member in procfs.session_members(pid) if member.pid != pid)


def port_owner(port: int, host: str = "") -> PortOwner | None:
    """Who listens on `port` now (of any address, or where it is in the way of `host`), or None when nobody does."""
    inodes = listening_inodes(port, host)
    if not inodes:
        return None
    for pid in procfs.pids():
        if holds_socket(pid, inodes):
            argv = procfs.cmdline(pid)
            return PortOwner(port=port, pid=pid, name=Path(argv[0]).name if argv else "?")
    return PortOwner(port=port, pid=None, name="a process of another user")
