"""`front PORT UPSTREAM_URL [--guarded] [--beat FILE]`: the front as the runtime serves it, with one model `m`.

`s` is the same server, with a key that is set in each body. `--guarded` asks for an API key (`KEY`) and gives the model
slots for 32 requests, the rest queue. With `--beat`, on SIGUSR1, the longest that the loop was held since is written to
FILE, in milliseconds, less the time in which it was ready and had no core.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from launcher.ir.fleet import BreakerUnit, FrontUnit, RouteTarget, RoutingTable
from launcher.route import Front, StaticUpstreams, serve

KEY = "benchmark-key"
GUARDED_SLOTS = 32
CONNECTIONS = 6000
SLOTS = 1024
"""More than any round's clients: the queue is not what is measured."""


def routing_table(port: int, upstream_url: str, *, key_file: str | None = None) -> RoutingTable:
    """A table with the one model `m`, at `upstream_url`."""
    url = urlsplit(upstream_url)
    unit = RouteTarget(
        name="m",
        host=url.hostname or "127.0.0.1",
        port=url.port or 80,
        slots=GUARDED_SLOTS if key_file else SLOTS,
        n_ctx_per_slot=4096,
        model="m",
        roles=(),
        aliases=(),
        start="boot",
        exclusive=None,
        request_timeout_s=600,
        request_defaults={},
        embedding=False,
        modalities=("text",),
    )
    front = FrontUnit(
        host="127.0.0.1",
        port=port,
        api_key_file=key_file,
        max_body_bytes=64 << 20,
        max_header_bytes=64 << 10,
        header_timeout_s=10,
        idle_timeout_s=75,
        connect_timeout_s=5,
        queue_size=256,
        queue_timeout_s=60,
        allowed_hosts=(),
        access_log=False,
        max_connections=CONNECTIONS,
        max_connections_per_client=CONNECTIONS,
    )
    return RoutingTable(
        deployment="benchmark",
        front=front,
        targets={"m": unit, "s": msgspec.structs.replace(unit, name="s", request_set={"seed": 1})},
        names={"m": ("m",), "s": ("s",)},
        default="m",
        pools=(),
        fallback={},
        escalation={},
        max_retries=2,
        max_escalations=2,
        breaker=BreakerUnit(failures=3, open_s=30, open_max_s=300),
        timeouts_s={},
    )


def guarded_front(port: int, upstream_url: str) -> Front:
    """A front that asks for a key."""
    import tempfile  # noqa: PLC0415  # late: the front itself does without, and its memory is measured

    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(KEY + "\n")
        keys.flush()
        return Front(routing_table(port, upstream_url, key_file=keys.name), StaticUpstreams())


async def beat(figures: Path) -> None:
    """Look every millisecond how long it has been since the last look (Linux, scheduler/sched-stats)."""
    own = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def now_ms() -> float:
        """Of a clock that stands while this thread waits for a core."""
        return time.monotonic() * 1e3 - int(os.pread(own, 99, 0).split()[1]) / 1e6

    most_ms, last_ms = 0.0, now_ms()

    def write() -> None:
        nonlocal most_ms
        part = figures.with_suffix(".part")
        part.write_text(str(most_ms))
        part.rename(figures)
        most_ms = 0.0

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write)
    while True:
        await asyncio.sleep(0.001)
        most_ms, last_ms = max(most_ms, now_ms() - last_ms), now_ms()


async def main(port: int, upstream_url: str, *, guarded: bool, figures: Path | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    shutdown = asyncio.Event()
    beating = asyncio.create_task(beat(figures)) if figures is not None else None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.set)
    if guarded:
        front = guarded_front(port, upstream_url)
    else:
        front = Front(routing_table(port, upstream_url), StaticUpstreams())
    await serve(front, host="127.0.0.1", port=port, shutdown=shutdown, drain_timeout_s=1)
    if beating is not None:
        beating.cancel()


if __name__ == "__main__":
    options = sys.argv[3:]
    where = Path(options[options.index("--beat") + 1]) if "--beat" in options else None
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], guarded="--guarded" in options, figures=where))
