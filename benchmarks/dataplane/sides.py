"""What is measured beside the front: the upstream itself, and HAProxy routing by the body's `model`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
_HAPROXY = """
global
    nbthread 1
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 600s
    option http-buffer-request
frontend front
    bind 127.0.0.1:{port}
    http-request set-var(txn.model) req.body,json_query('$.model')
    use_backend m if {{ var(txn.model) -m str m }}
backend m
    http-reuse always
    server m 127.0.0.1:{upstream}
"""


def free_port() -> int:
    """A loopback port nobody holds now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(argv: Sequence[str], port: int, wait_s: float = 20) -> Iterator[int]:
    """A process that listens on `port` within `wait_s`, ended afterwards; its pid."""
    process = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv} does not listen on {port}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def instant(port: int) -> list[str]:
    """The upstream written for the benchmark."""
    return [sys.executable, "-m", "benchmarks.dataplane.instant", str(port)]


def front(port: int, upstream: int, *more: str) -> list[str]:
    """The real front."""
    return [str(HERE / "front"), str(port), f"http://127.0.0.1:{upstream}", *more]


def haproxy(port: int, upstream: int, directory: Path) -> list[str]:
    """HAProxy on one thread; the body's `model` chooses the backend."""
    path = directory / "haproxy.cfg"
    path.write_text(_HAPROXY.format(port=port, upstream=upstream))
    return ["haproxy", "-q", "-db", "-f", str(path)]
