"""`python -m benchmarks.strangers [--seconds S] [--rounds N] [--only WORD]`: what clients of bad will cost others.

One upstream, one front (in its own process), and one HAProxy with the same limits where there is one. While a crowd, a
process of its own, does its worst, good clients ask `/health` and post small requests, one after the other: their times
are the result, with the resident memory and the CPU time of the front and its children. Front and HAProxy take turns,
so that what else the machine does falls on both. `benchmarks.bodies` has what one client's worst bodies do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.dataplane import sides

MIB = 1 << 20
_CROWD = 200
_IDLE = 5_000
_GATHERS_S = 6.0
"""What the crowd has to come."""
_LIMITS = """
    maxconn 6000
    timeout http-request 10s
    timeout http-keep-alive 75s
"""
Attack = Callable[[int, float], Coroutine[Any, Any, None]]


async def _send(port: int, until: float, data: bytes, every: bytes = b"", read: bool = False) -> None:
    """One connection of the crowd: `data`, then `every` ten times a second, until the time is over; then again."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if not read:
                cast("asyncio.Transport", writer.transport).pause_reading()
            try:
                writer.write(data)
                while time.monotonic() < until and not writer.is_closing():
                    await asyncio.sleep(0.1)
                    if every:
                        writer.write(every)
                    if read and reader.at_eof():
                        break
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.05)


def _crowd(data: bytes, count: int = _CROWD, every: bytes = b"", *, read: bool = False) -> Attack:
    """So many connections that do the same."""

    async def attack(port: int, until: float) -> None:
        await asyncio.gather(*(_send(port, until, data, every, read) for _ in range(count)))

    return attack


_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ATTACKS: dict[str, Attack] = {
    "nobody": _crowd(b"", 0),
    "slow heads": _crowd(b"GET / HTTP/1.1\r\nHost: a\r\n", every=b"X: y\r\n"),
    "slow bodies": _crowd(_POST + b"Content-Length: 1000000\r\n\r\n{", every=b" "),
    "unfinished 63 MB bodies": _crowd(_POST + b"Content-Length: %d\r\n\r\n" % (63 * MIB) + b" " * (4 * MIB), 30),
    "unread answers": _crowd((_POST + b"Content-Length: 13\r\n\r\n" + b'{"model":"m"}') * 5_000),
    "pipelined, unread": _crowd(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 12_000, 40),
    f"{_IDLE} idle connections": _crowd(b"", _IDLE, read=True),
    "long targets": _crowd(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", read=True),
}


async def _ask(port: int, request: bytes) -> float:
    """Seconds that one request on its own connection takes; infinity for no answer within 20 s."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return float("inf")
    return time.monotonic() - began if answer.startswith(b"HTTP/1.1 200") else float("inf")


async def _good(port: int, until: float, request: bytes) -> list[float]:
    """A good client's times, in seconds."""
    times = []
    while time.monotonic() < until:
        times.append(await _ask(port, request))
        await asyncio.sleep(0.01)
    return times


def _rss(pid: int) -> int:
    """Resident bytes of a process and its children."""
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


async def _memory(pid: int, until: float) -> int:
    """The most that was resident."""
    most = 0
    while time.monotonic() < until:
        with contextlib.suppress(psutil.Error):
            most = max(most, _rss(pid))
        await asyncio.sleep(0.05)
    return most


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SMALL = _POST + b"Connection: close\r\nContent-Length: 13\r\n\r\n" + b'{"model":"m"}'


def _p99(times: list[float]) -> str:
    """Milliseconds, and how many got no answer."""
    answered = [t for t in times if t < 20]
    lost = len(times) - len(answered)
    if not answered:
        return "none answered"
    value = statistics.quantiles(answered, n=100)[98] if len(answered) > 1 else answered[0]
    return f"{value * 1000:.0f}" + (f" ({lost} of {len(times)} lost)" if lost else "")


def _cpu_s(pid: int) -> float:
    """CPU time of a process and its children."""
    process = psutil.Process(pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def attack_by_name(name: str, port: int, until: float) -> None:
    """What the crowd's process does."""
    asyncio.run(ATTACKS[name](port, until))


@dataclasses.dataclass
class _Side:
    """The front or HAProxy, and what was seen of it beside one crowd."""

    name: str
    pid: int
    port: int
    memory: int = 0
    cpu_s: float = 0
    seconds: float = 0
    health: list[float] = dataclasses.field(default_factory=list)
    small: list[float] = dataclasses.field(default_factory=list)

    async def beside(self, attack: str, seconds: float) -> None:
        """One turn."""
        until = time.monotonic() + _GATHERS_S + seconds
        crowd = multiprocessing.get_context("spawn").Process(target=attack_by_name, args=(attack, self.port, until))
        crowd.start()
        try:
            await asyncio.sleep(_GATHERS_S)
            began = _cpu_s(self.pid)
            memory, health, small = await asyncio.gather(
                _memory(self.pid, until), _good(self.port, until, HEALTH), _good(self.port, until, SMALL)
            )
        finally:
            crowd.kill()
            crowd.join()
        self.memory = max(self.memory, memory)
        self.cpu_s += _cpu_s(self.pid) - began
        self.seconds += seconds
        self.health += health
        self.small += small

    def row(self, attack: str) -> str:
        """Of the table."""
        cpu = f"{100 * self.cpu_s / self.seconds:.0f}"
        return (
            f"| {attack} | {self.name} | {self.memory / MIB:.0f} | {cpu} | {_p99(self.health)} | {_p99(self.small)} |"
        )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    upstream, port, other = (sides.free_port() for _ in range(3))
    with contextlib.ExitStack() as stack:
        stack.enter_context(sides.running(sides.instant(upstream), upstream))
        pid = stack.enter_context(sides.running(sides.front(port, upstream), port))
        beside = [("front", pid, port)]
        if shutil.which("haproxy"):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            argv = sides.haproxy(other, upstream, directory)
            config = directory / "haproxy.cfg"
            text = config.read_text().replace(
                "    option http-buffer-request\n", "    option http-buffer-request\n" + _LIMITS
            )
            config.write_text(
                text.replace("    http-request set-var", "    monitor-uri /health\n    http-request set-var")
            )
            beside.append(("HAProxy", stack.enter_context(sides.running(argv, other)), other))
        print("| crowd | side | memory, MiB | CPU, % | /health p99, ms | good clients' p99, ms |")
        print("| --- | --- | --- | --- | --- | --- |")
        for attack in ATTACKS:
            if options.only not in attack:
                continue
            sides_ = [_Side(*each) for each in beside]
            for _ in range(options.rounds):
                for side in sides_:
                    asyncio.run(side.beside(attack, options.seconds))
            for side in sides_:
                print(side.row(attack), flush=True)


if __name__ == "__main__":
    main()
