"""`python -m benchmarks.bodies [--only WORD]`: how long others wait while one request has the worst body of 63 MB.

For every way that a body is read. `/health` of the front is asked all the time, and in turn with it a loop that has
nothing to do, which says how much of the wait is the machine's own. The last column is measured within the front: the
longest that its loop was held between two beats of a millisecond, less the time in which it was ready and had no core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.dataplane import sides

MIB = 1 << 20
SIZE = 63 * MIB
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_PAUSE_S = 0.003
_QUIET = "nothing"
CHAT, FORM, CONTROL = "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/chat/completions/control"
_JSON = "application/json"


def bodies() -> Iterator[tuple[str, str, str, bytes]]:
    """A name, the path, the content type, and the bytes."""

    def with_model(name: str, messages: bytes) -> bytes:
        return b'{"model":"%b","messages":[%b]}' % (name.encode(), messages)

    lists, strings = b",".join([b"[]"] * (SIZE // 3)), b",".join([b'""'] * (SIZE // 3))
    for model, what in (("m", ""), ("s", ", a key is set")):
        yield f"lists{what}", CHAT, _JSON, with_model(model, lists)
        yield f"strings{what}", CHAT, _JSON, with_model(model, strings)
        yield f"keys{what}", CHAT, _JSON, b'{%b,"model":"%b"}' % (b",".join([b'"a":0'] * (SIZE // 6)), model.encode())
        text = json.dumps([{"role": "user", "content": "sql " * (SIZE // 4)}]).encode()[1:-1]
        yield f"one text{what}", CHAT, _JSON, with_model(model, text)
        yield (
            f"escapes{what}",
            CHAT,
            _JSON,
            b'{"prompt":"%b","model":"%b"}' % (b"\\u0061" * (SIZE // 6), model.encode()),
        )
    yield "declared as text", CHAT, "text/plain", with_model("m", lists)
    yield "Anthropic", "/v1/messages", _JSON, with_model("m", lists)
    yield "media parts", CHAT, _JSON, with_model("m", b'{"content":[%b]}' % b",".join([b'{"type":""}'] * (SIZE // 12)))
    yield "no JSON", CHAT, _JSON, b"{" * SIZE
    yield "deep", CHAT, _JSON, b'{"a":' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}"
    yield "a form of empty parts", FORM, "multipart/form-data; boundary=x", b"--x" + b"\r\n--x" * (SIZE // 5)
    yield "a form of one part", FORM, "multipart/form-data; boundary=x", b"--x\r\n" + b" " * SIZE + b"\r\n--x--"
    yield "to a generation", CONTROL, _JSON, b'{"id":"%b"}' % (b"a" * SIZE)
    yield "to a page", "/health", _JSON, lists


def _chunked(body: bytes) -> bytes:
    """`body` in chunks of one byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


class Asking:
    """Asks for `/health`, the front's and the idle loop's in turn."""

    def __init__(self, *ports: int) -> None:
        """Of the front, and of the idle loop."""
        self._ports = ports
        self.times: tuple[list[float], ...] = ([], [])

    def ask(self) -> None:
        """Both, once."""
        for port, times in zip(self._ports, self.times, strict=True):
            began = time.monotonic()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(_HEALTH)
                if client.recv(65536).startswith(b"HTTP/1.1 200"):
                    times.append((time.monotonic() - began) * 1000)
                    continue
            times.append(float("inf"))
        time.sleep(_PAUSE_S)

    def cells(self) -> str:
        """Median, p99 and worst of both, in milliseconds."""
        return " | ".join(
            f"{statistics.median(times):.1f} | {statistics.quantiles(times, n=100, method='inclusive')[98]:.1f}"
            f" | {max(times):.1f}"
            for times in self.times
        )


def _held_ms(pid: int, figures: Path) -> float:
    """The longest that the front's loop was held since this was asked last."""
    figures.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    while not figures.exists():
        time.sleep(0.005)
    return float(figures.read_text())


def _send(port: int, path: str, kind: str, source: Path, *, chunked: bool) -> subprocess.Popen[bytes]:
    """Another process that sends the body in `source`, and says the answer's status."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {source.stat().st_size}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{length}\r\n\r\n"
    code = (
        "import socket, sys; c = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
        "c.sendall(sys.argv[2].encode()); f = open(sys.argv[3], 'rb')\n"
        "try: c.sendfile(f)\nexcept OSError: pass\n"
        "print(c.recv(4096)[9:12].decode())"
    )
    return subprocess.Popen([sys.executable, "-S", "-c", code, str(port), head, str(source)], stdout=subprocess.PIPE)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures, source = directory / "held", directory / "body"
        upstream, port, other = (sides.free_port() for _ in range(3))
        stack.enter_context(sides.running([sys.executable, "-m", "benchmarks.dataplane.sink", str(upstream)], upstream))
        idle = [sys.executable, "-m", "benchmarks.dataplane.instant", str(other)]
        stack.enter_context(sides.running(idle, other))
        pid = stack.enter_context(sides.running(sides.front(port, upstream, "--beat", str(figures)), port))
        print(
            "| 63 MB of | answer | seconds | /health median, ms | p99 | worst | idle loop median, ms | p99 | worst |"
            " loop held, ms |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        )

        def measured(name: str, path: str, kind: str, body: bytes, *, chunked: bool = False) -> None:
            if options.only not in name:
                return
            source.write_bytes(body)
            asking, began = Asking(port, other), time.monotonic()
            _held_ms(pid, figures)
            sending = _send(port, path, kind, source, chunked=chunked)
            while sending.poll() is None:
                asking.ask()
            took = time.monotonic() - began
            status = sending.communicate()[0].decode().strip()
            held = _held_ms(pid, figures)
            print(f"| {name} | {status} | {took:.1f} | {asking.cells()} | {held:.1f} |", flush=True)

        for _ in range(2):  # the first begins the reader
            measured(_QUIET, "/health", _JSON, b"{}")
        for body in bodies():
            measured(*body)
        measured(
            "5 MB in chunks of a byte",
            CHAT,
            _JSON,
            _chunked(b'{"model":"m","prompt":"%b"}' % (b"a" * 5 * MIB)),
            chunked=True,
        )


if __name__ == "__main__":
    main()
