"""A closed-loop load client on bare protocols: light, so that it measures the other side."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import cast

MESSAGE = {"role": "user", "content": "y" * 420}


def request(path: str, *, stream: bool) -> bytes:
    """A 500-byte chat request for model `m`."""
    body = json.dumps({"model": "m", "stream": stream, "messages": [MESSAGE]}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"\r\n" + body


class Caller(asyncio.Protocol):
    """Sends a request whenever the answer to the last one is complete."""

    def __init__(self, data: bytes, *, stream: bool) -> None:
        """Answers are counted in `seconds` while `running`."""
        self.data = data
        self.stream = stream
        self.length = 0
        self.got = 0
        self.seconds: list[float] = []
        self.running = True
        self.idle = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        """The next request."""
        self.got = 0
        self.began = time.perf_counter()
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        """Part of an answer; whole answers all have the length of the first, streams end with the last chunk."""
        self.got += len(data)
        if self.stream:
            if not data.endswith(b"\r\n0\r\n\r\n") and data != b"0\r\n\r\n":
                return
        else:
            if not self.length:
                head, _, _ = data.partition(b"\r\n\r\n")
                assert data.startswith(b"HTTP/1.1 200"), data
                self.length = len(head) + 4 + int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if self.got < self.length:
                return
        self.seconds.append(time.perf_counter() - self.began)
        self.length = 0 if self.got != self.length else self.length
        if self.running:
            self.send()
        elif not self.idle.done():
            self.idle.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that is missing is an error of the benchmark."""
        if not self.idle.done():
            self.idle.set_exception(ConnectionError(f"connection lost: {exc}"))


async def measure(port: int, *, clients: int, stream: bool, seconds: float) -> tuple[float, float]:
    """Median seconds of a request, and requests per second, of `clients` in a closed loop."""
    loop = asyncio.get_running_loop()
    data = request("/stream" if stream else "/v1/chat/completions", stream=stream)
    callers: list[Caller] = []
    for _ in range(clients):
        _, caller = await loop.create_connection(lambda: Caller(data, stream=stream), "127.0.0.1", port)
        callers.append(caller)
    await asyncio.sleep(0.2)
    for caller in callers:
        caller.seconds.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    times = [s for caller in callers for s in caller.seconds]
    spent = time.perf_counter() - began
    for caller in callers:
        caller.running = False
    await asyncio.gather(*(caller.idle for caller in callers))
    for caller in callers:
        caller.transport.close()
    return statistics.median(times), len(times) / spent
