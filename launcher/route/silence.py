"""Connections to other hosts that fall silent: a cut cable or a power failure sends no reset. I/O: socket options."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from typing import Any

SILENT_S = 5
"""A host whose kernel acknowledges nothing for so long is gone; a server that computes still acknowledges."""


def expect_acknowledgements(sock: Any) -> None:
    """Have `sock` fail (ETIMEDOUT) after `SILENT_S` without an acknowledgement, of data or of a probe while idle.

    `sock`: an asyncio transport's socket. Nothing on loopback and unix sockets, whose other end cannot vanish.
    """
    with contextlib.suppress(OSError, ValueError):  # closed already, or no IP address: its next use tells
        if ip_address(sock.getpeername()[0]).is_loopback:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
