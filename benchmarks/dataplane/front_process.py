"""`front PORT UPSTREAM_URL [--guarded]`: the front as the runtime serves it, with one model `m`.

`--guarded` asks for an API key (`KEY`) and gives the model slots for 32 requests, the rest queue.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from urllib.parse import urlsplit

import uvloop

from launcher.ir.fleet import BreakerUnit, FrontUnit, RouteTarget, RoutingTable
from launcher.route import Front, StaticUpstreams, serve

KEY = "benchmark-key"
GUARDED_SLOTS = 32
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
    )
    return RoutingTable(
        deployment="benchmark",
        input_digest="",
        front=front,
        targets={"m": unit},
        names={"m": ("m",)},
        default="m",
        pools=(),
        fallback={},
        escalation={},
        max_retries=2,
        max_escalations=2,
        breaker=BreakerUnit(failures=3, open_s=30, open_max_s=300),
        timeouts_s={},
    )


async def main(port: int, upstream_url: str, *, guarded: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    shutdown = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.set)
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(KEY + "\n")
        keys.flush()
        table = routing_table(port, upstream_url, key_file=keys.name if guarded else None)
        front = Front(table, StaticUpstreams())
    await serve(front, host="127.0.0.1", port=port, shutdown=shutdown, drain_timeout_s=1)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], guarded="--guarded" in sys.argv[3:]))
