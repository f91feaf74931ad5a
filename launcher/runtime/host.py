"""The runtime and the host it runs on: signals, systemd, and where its front is reached. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

from launcher.base.addresses import address_text
from launcher.ir.fleet import RoutingTable

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def signals(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within the block SIGTERM, SIGINT and SIGHUP (unless ignored, as under nohup) call `on_signal`."""
    loop = asyncio.get_running_loop()
    ours = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in ours:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in ours:
            loop.remove_signal_handler(number)


def front_url(table: RoutingTable) -> str:
    """URL of the front from this machine."""
    unit = table.front
    host = "127.0.0.1" if unit.host in ("0.0.0.0", "::") else unit.host  # noqa: S104 - shown, not bound
    scheme = "http" if unit.tls_cert_file is None else "https"
    return f"{scheme}://{address_text(host, unit.port)}"


def notify(message: str) -> None:
    """Send a message to systemd (`NOTIFY_SOCKET`), if it runs us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
