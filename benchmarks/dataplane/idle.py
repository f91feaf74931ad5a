"""What streams that stay open and say nothing cost the front in memory."""

from __future__ import annotations

import socket
import time
from pathlib import Path

_REQUEST_BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"' + b"y" * 420 + b'"}]}'
_REQUEST = (
    b"POST /idle HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_REQUEST_BODY), _REQUEST_BODY)
)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process that is its own, files it maps left out (RssAnon)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    lines = {k: v for k, _, v in (line.partition(":") for line in status.splitlines())}
    return int((lines.get("RssAnon") or lines["VmRSS"]).split()[0]) * 1024


def idle_streams(port: int, pid: int, count: int) -> int:
    """Bytes that process `pid` grows by with `count` open streams, each after its first event."""
    before = resident_bytes(pid)
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.settimeout(10)
        client.sendall(_REQUEST)
        clients.append(client)
    for client in clients:
        if not client.recv(65536).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a stream was refused")
    time.sleep(0.5)
    grown = resident_bytes(pid) - before
    for client in clients:
        client.close()
    return grown
