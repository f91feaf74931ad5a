"""Sockets whose other end is this machine: no network to be fair to. I/O: socket options."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from typing import Any

_PLAIN = b"reno"
"""Built into every Linux kernel, and allowed to everyone."""


def without_pacing(sock: Any) -> None:
    """Spare `sock`, and what it accepts, the machine's congestion control, if its own address is loopback.

    A machine that serves the internet often has BBR, which times every segment: 2 µs of 16 that a short request costs
    the kernel here, for a path that cannot be congested. `sock`: a socket or what asyncio gives out as one.
    """
    with contextlib.suppress(OSError, ValueError):  # closed already, or no IP address
        if ip_address(sock.getsockname()[0]).is_loopback:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _PLAIN)
