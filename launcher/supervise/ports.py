"""Which process listens on a TCP port or a unix socket: to name a stranger, or to know that it is our child."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher.base import procfs, unix_socket
from launcher.base.addresses import is_path
from launcher.supervise.identity import MARKER
from launcher.supervise.offline import LOCK_NAME

_LOOKS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ports")
_CONNECTED_STATE = 1
_LISTEN_STATE = 10
_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address that is written as an IPv6 one (::ffff:0:0/96)."""


class Listener(NamedTuple):
    """One listening socket; `address` is 4 or 16 bytes in network order, `uid` its owner.

    `name`: as links in /proc/PID/fd show it, `socket:[INODE]`.
    """

    address: bytes
    name: str
    uid: int


class PortOwner(msgspec.Struct, frozen=True, kw_only=True):
    """A process that listens on `port` (0: on a unix socket). `pid` None: a process that we may not see.

    `fleet`: its part in the fleet that started it, if one did: `coder of epyc-full in DIR`.
    """

    port: int
    pid: int | None
    name: str
    fleet: str = ""

    def __str__(self) -> str:
        """`llama-server (pid 4711)`; with `fleet`, it follows the pid."""
        fleet = f", {self.fleet}" if self.fleet else ""
        return f"{self.name} (pid {self.pid}{fleet})" if self.pid is not None else self.name


def listeners(port: int, host: str = "") -> list[Listener]:
    """Sockets that listen on TCP `port` in this network namespace; with `host`, those that conflict with it.

    From /proc/net, whose addresses are 32-bit words in the machine's byte order.
    """
    found = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            words, _, number = fields[1].rpartition(":")
            if int(number, 16) != port or int(fields[3], 16) != _LISTEN_STATE:
                continue
            parts = struct.unpack(f"!{len(words) // 8}I", bytes.fromhex(words))
            address = struct.pack(f"={len(parts)}I", *parts)
            if not host or _meets(address, host):
                found.append(Listener(address, f"socket:[{fields[9]}]", int(fields[7])))
    return found


def connected(host: str, port: str) -> bool:
    """Whether this network namespace has an established TCP connection to an IPv4 address and port.

    True where that cannot be checked: for a host name or an IPv6 address, or when /proc/net cannot be read.
    """
    try:
        (address,) = struct.unpack("=I", socket.inet_aton(host))
        there = f"{address:08X}:{int(port):04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except (OSError, ValueError):
        return True
    return any(fields[2] == there and int(fields[3], 16) == _CONNECTED_STATE for fields in map(str.split, lines))


def listens(pid: int, port: int) -> bool:
    """Whether the process `pid`, or one of its session, listens on `port`.

    For a process of another user: whether that user does. A systemd unit has a user of its own (DynamicUser=), so its
    sockets belong to no other program.
    """
    sockets = listeners(port)
    if any(_holds(pid, s) for s in sockets):
        return True
    return bool(sockets) and any(_holds(m.pid, s) for m in procfs.session_members(pid) for s in sockets)


def intruder(pid: int, port: int, host: str) -> str | None:
    """Another process that listens where only `pid` should; None: there is none. Blocks (reads /proc).

    Raises ProcessLookupError when the process has ended, or nothing listens (it is just ending). Two processes may
    share a port (SO_REUSEPORT, which llama-server sets), and the kernel then gives connections to either.
    """
    sockets = listeners(port, host)
    others = [s for s in sockets if not _holds(pid, s)]
    if others:
        members = [m.pid for m in procfs.session_members(pid)]
        others = [s for s in others if not any(_holds(member, s) for member in members)]
    owner = port_owner(port, host) if others else None
    stat = procfs.proc_stat(pid)
    if stat is None or stat.state == "Z" or not sockets:
        raise ProcessLookupError
    return None if owner is None else str(owner)


async def look_for_intruder(pid: int, port: int, host: str) -> str | None:
    """See `intruder`; the calls are made one after another in one thread."""
    return await asyncio.get_running_loop().run_in_executor(_LOOKS, intruder, pid, port, host)


def _holds(pid: int, socket_: Listener) -> bool:
    """Whether the socket is the process's; for another user's process, whether it is that user's (see `listens`)."""
    try:
        user = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False
    return socket_.uid == user if os.getuid() not in (0, user) else socket_.name in procfs.open_files(pid)


def stranger_behind(pid: int, peer: int) -> str | None:
    """The process `peer` that answers a unix socket in place of `pid`; None: it belongs to the session of `pid`.

    Raises ProcessLookupError when the process `pid` has ended.
    """
    if peer == pid or any(member.pid == peer for member in procfs.session_members(pid)):
        return None
    stat = procfs.proc_stat(pid)
    if stat is None or stat.state == "Z":
        raise ProcessLookupError
    return str(process_at(peer))


def port_owner(port: int, host: str = "") -> PortOwner | None:
    """The process that listens on `port` now, with `host` in conflict with it; None: there is none.

    `host` may be the path of a unix socket; a file there that is no socket counts as an owner, too.
    """
    if is_path(host):
        try:
            pid = unix_socket.listener(host)
        except unix_socket.NotASocketError:
            return PortOwner(port=0, pid=None, name="something that is no socket")
        return None if pid is None else process_at(pid)
    sockets = {socket_.name for socket_ in listeners(port, host)}
    if not sockets:
        return None
    holder = next((pid for pid in procfs.pids() if not sockets.isdisjoint(procfs.open_files(pid))), 0)
    return process_at(holder, port)


def process_at(pid: int, port: int = 0) -> PortOwner:
    """Describe the process `pid` that listens on `port`; `pid` 0: one that we may not see."""
    if not pid:
        return PortOwner(port=port, pid=None, name="a process of another user")
    argv = procfs.cmdline(pid)
    return PortOwner(port=port, pid=pid, name=Path(argv[0]).name if argv else "?", fleet=_fleet_of(pid))


def _fleet_of(pid: int) -> str:
    """The part of `pid` in a fleet: a server by its mark, a runtime by the lock that it holds open; "": a stranger."""
    mark = procfs.environment(pid, MARKER)
    if mark is not None:
        state = Path(mark).parent.parent
        return f"{Path(mark).stem} of {state.name} in {state}"
    locks = (Path(target) for target in procfs.open_files(pid) if target.endswith(f"/{LOCK_NAME}"))
    return next((f"the front of {lock.parent.name} in {lock.parent}" for lock in locks), "")


def _meets(address: bytes, host: str) -> bool:
    """Whether listeners on `address` and on `host` conflict: they are equal, or one is a wildcard."""
    if not any(address):
        return True
    if host == "localhost":
        return _meets(address, "127.0.0.1") or _meets(address, "::1")
    try:
        wanted = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        return True  # a name: it may be any of ours
    return not any(wanted) or address.removeprefix(_MAPPED) == wanted.removeprefix(_MAPPED)
