"""Listening TCP sockets, asked of the kernel: NETLINK_SOCK_DIAG, which costs the same on an idle host and a busy one.

/proc/net/tcp lists every connection of the host, also those that just ended: 4 ms for 1,800 of them. It is read where
the kernel does not answer (a sandbox without AF_NETLINK). Layouts: linux/netlink.h, linux/inet_diag.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SOCK_DIAG = 4
_BY_FAMILY = 20
_DUMP = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""
_ERROR, _DONE = 2, 3
_LISTEN_STATE = 10
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")
_ANSWER = struct.Struct("!B3xH2x16s44xI")
"""Family, port, address; the inode comes last, in the machine's own order."""
_TIMEOUT_S = 1.0
_MAPPED = bytes(10) + b"\xff\xff"
"""What comes before an IPv4 address that is written as an IPv6 one."""


class Listener(NamedTuple):
    """One listening socket; `address` is 4 or 16 bytes in network order."""

    port: int
    address: bytes
    inode: int


def listening_inodes(port: int, host: str = "") -> frozenset[str]:
    """Socket inodes that listen on TCP `port`: on any address, or where it is in the way of a listener on `host`."""
    return frozenset(str(s.inode) for s in listeners() if s.port == port and (not host or _meets(s.address, host)))


def listeners() -> tuple[Listener, ...]:
    """Every listening TCP socket of this network namespace."""
    try:
        return tuple(_asked())
    except (OSError, struct.error):
        return tuple(_read())


def _asked() -> Iterator[Listener]:
    """The kernel's answer. Raises OSError where it gives none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN_STATE)
            kernel.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
            yield from _dump(kernel)


def _dump(kernel: socket.socket) -> Iterator[Listener]:
    """The answers to one request."""
    while True:
        data = kernel.recv(1 << 16)
        at = 0
        while at < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR or length < _HEADER.size:
                raise OSError("the kernel does not tell its sockets")
            body = at + _HEADER.size
            family, port, address, _ = _ANSWER.unpack_from(data, body)
            (inode,) = struct.unpack_from("=I", data, body + _ANSWER.size - 4)
            yield Listener(port, address[:4] if family == socket.AF_INET else address, inode)
            at += (length + 3) & ~3


def _read() -> Iterator[Listener]:
    """The same from /proc/net, where addresses are words in the machine's own order."""
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
