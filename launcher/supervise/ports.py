"""Who listens on a TCP port: to name a stranger, and to know that the listener is our child."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher.supervise import procfs
from launcher.supervise.identity import MARKER
from launcher.supervise.offline import LOCK_NAME

_LISTEN_STATE = 10
_MAPPED = bytes(10) + b"\xff\xff"
"""What comes before an IPv4 address that is written as an IPv6 one."""


class Listener(NamedTuple):
    """One listening socket; `address` is 4 or 16 bytes in network order."""

    port: int
    address: bytes
    inode: int


class PortOwner(msgspec.Struct, frozen=True, kw_only=True):
    """A process that listens on `port`. `pid` is None when it is not ours to see.

    `fleet`: what it is to the fleet that started it, if one did: `coder of epyc-full in DIR`.
    """

    port: int
    pid: int | None
    name: str
    fleet: str = ""

    def __str__(self) -> str:
        """`llama-server (pid 4711)`, or with `fleet` behind it."""
        fleet = f", {self.fleet}" if self.fleet else ""
        return f"{self.name} (pid {self.pid}{fleet})" if self.pid is not None else self.name


def listening_inodes(port: int, host: str = "") -> frozenset[str]:
    """Socket inodes that listen on TCP `port`: on any address, or where it is in the way of a listener on `host`."""
    return frozenset(str(s.inode) for s in listeners() if s.port == port and (not host or _meets(s.address, host)))


def listeners() -> Iterator[Listener]:
    """Every listening TCP socket of this network namespace (/proc/net, addresses are words in the machine's order)."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[3], 16) == _LISTEN_STATE:
                address, _, port = fields[1].rpartition(":")
                words = struct.unpack(f"!{len(address) // 8}I", bytes.fromhex(address))
                yield Listener(int(port, 16), struct.pack(f"={len(words)}I", *words), int(fields[9]))


def holds_socket(pid: int, inodes: frozenset[str]) -> bool:
    """Whether `pid` has one of the sockets open, as far as we may look."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return any(target in wanted for target in _open_files(pid))


def _open_files(pid: int) -> Iterator[str]:
    """What the descriptors of `pid` lead to, as far as we may look."""
    directory = f"/proc/{pid}/fd"
    try:
        entries = os.listdir(directory)  # noqa: PTH208 - done for every process; Path objects double its time
    except OSError:
        return
    for entry in entries:
        try:
            yield os.readlink(f"{directory}/{entry}")  # noqa: PTH115 - as above
        except OSError:
            continue


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
            return PortOwner(port=port, pid=pid, name=Path(argv[0]).name if argv else "?", fleet=_fleet_of(pid))
    return PortOwner(port=port, pid=None, name="a process of another user")


def _fleet_of(pid: int) -> str:
    """What `pid` is to a fleet: a server by its mark, a runtime by the lock that it holds open; "" for a stranger."""
    mark = procfs.environment(pid, MARKER)
    if mark is not None:
        state = Path(mark).parent.parent
        return f"{Path(mark).stem} of {state.name} in {state}"
    locks = (Path(target) for target in _open_files(pid) if target.endswith(f"/{LOCK_NAME}"))
    return next((f"the front of {lock.parent.name} in {lock.parent}" for lock in locks), "")


def _meets(address: bytes, host: str) -> bool:
    """Whether a listener on `address` and one on `host` get in each other's way: equal, or one is a wildcard."""
    if not any(address):
        return True
    if host == "localhost":
        return _meets(address, "127.0.0.1") or _meets(address, "::1")
    try:
        wanted = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        return True  # a name: it may be any of ours
    return not any(wanted) or address.removeprefix(_MAPPED) == wanted.removeprefix(_MAPPED)
