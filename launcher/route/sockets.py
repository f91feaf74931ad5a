"""Options of the front's sockets, to clients and to servers. I/O: socket options."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from ipaddress import IPv6Address, ip_address
from typing import Any

SILENT_S = 5
"""Seconds without an acknowledgement after which a host is gone; the kernel of a busy server still acknowledges."""
_PLAIN = b"reno"
"""Built into every Linux kernel, and allowed to everyone."""
_TCP_INFO_BYTES = 128
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_OFFSET = 120
"""`tcpi_bytes_acked` in Linux's `struct tcp_info` (linux/tcp.h); it counts the SYN as one."""
_OTHERS = 256
"""Descriptors kept for servers, logs and the control API."""
_RESET = struct.pack("ii", 1, 0)
_UNSENT_BYTES = 128 * 1024


def without_pacing(sock: Any) -> None:
    """Use plain congestion control for `sock`, and for what it accepts, if its own address is loopback.

    A machine that serves the internet often has BBR, which times every segment: 2 µs of the 16 µs that a short request
    costs the kernel here, for a path that cannot be congested. `sock`: a socket or what asyncio gives out as one.
    """
    with contextlib.suppress(OSError, ValueError):  # closed already, or no IP address
        if ip_address(sock.getsockname()[0]).is_loopback:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _PLAIN)


def with_little_unsent(sock: Any) -> None:
    """Limit what the kernel buffers unsent for each connection that `sock` accepts.

    It would buffer up to 4 MB for a client that reads nothing. Data under way to a client that reads is not limited by
    this, so a long fast line stays full.
    """
    with contextlib.suppress(OSError):  # no TCP
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def expect_acknowledgements(sock: Any) -> None:
    """Make `sock` fail (ETIMEDOUT) after `SILENT_S` without an acknowledgement, of data or of an idle probe.

    A cut cable or a power failure sends no reset. No effect on loopback and unix sockets, whose other end cannot
    vanish.
    """
    with contextlib.suppress(OSError, ValueError):  # closed already, or no IP address: its next use tells
        if ip_address(sock.getpeername()[0]).is_loopback:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)


def acknowledged_bytes(sock: Any) -> int | None:
    """Bytes written that the peer's kernel has acknowledged; None: unknown."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError):
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    acknowledged: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0]
    return acknowledged - 1


def reset_on_close(sock: Any) -> None:
    """Make closing send a reset (RST), so that a message which the close would end is seen as broken."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def descriptors() -> int:
    """Number of client connections that this process can hold beside its other descriptors."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft - min(_OTHERS, soft // 2)


def raise_descriptors(connections: int) -> None:
    """Raise the limit of descriptors, as far as allowed, for so many connections beside everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    with contextlib.suppress(OSError, ValueError):  # what is not allowed is done without
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def client_of(peer: str) -> str:
    """The client behind an address: the address itself, for IPv6 its first 64 bits, which one host may have all of."""
    if ":" not in peer:
        return peer
    with contextlib.suppress(ValueError):
        address = ip_address(peer.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is None and not address.is_loopback:
            return address.packed[:8].hex()
    return peer
