"""What the page costs with 50 servers, 1,000 requests in the list and 20 events a second.

    python -m benchmarks.page [--seconds N]

Prints the first paint, the longest update of each view (ms of script), and what share of a core the process that
serves the stream takes: with no page open, with one at rest, with one while 20 events a second come. The fleet is
made up, so that the figures are the page's and its stream's alone; routes, stream and page are the real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Callable, Coroutine
from multiprocessing.synchronize import Event
from typing import Any

import psutil

from launcher.events import EventLog
from launcher.ir.events import Happened, Record
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.ir.page import Request
from tests.page.browser import Browser, browser
from tests.ports import free_port

SERVERS, REQUESTS, EVENTS_A_SECOND = 50, 1000, 20
VIEWS = ("fleet", "devices", "timeline", "requests", "try", "orchestration")
_KINDS = ("starting", "ready", "decision", "verdict", "block", "swap", "stopping", "stopped")
GIB = 1024**3


def process(number: int, **changes: Any) -> ProcessStatus:
    """One server of the fleet."""
    fields: dict[str, Any] = {
        "name": f"server_{number:02}",
        "kind": "server",
        "state": "ready",
        "port": 9000 + number,
        "pid": 1000 + number,
        "model": "qwen3_coder_30b_a3b q4_k_m",
        "tier": "hot",
        "slots": 4,
        "log_tail": ("a line of the log",) * 20,
        "planned_bytes": {"ram": GIB},
        "measured_bytes": {"ram": GIB},
    }
    return ProcessStatus(**{**fields, **changes})


def request(number: int) -> Request:
    """One request that ended, or with number 0 one that runs."""
    return Request(
        number=number,
        id=f"request-{number}",
        at=time.time(),
        client="somebody",
        path="/v1/chat/completions",
        asked="coder",
        server=f"server_{number % SERVERS:02}",
        state="done" if number else "streaming",
        status=200,
        seconds=1.5,
        first_s=0.2,
        prompt_tokens=900,
        generated_tokens=120,
        tokens_per_second=31.4,
    )


class Host:
    """`Pages` of a made-up fleet; what the page does not ask for by itself is left out."""

    def __init__(self) -> None:
        """At rest."""
        self.log = EventLog(None)
        self.processes = {p.name: p for p in map(process, range(SERVERS))}
        self.past = [request(number) for number in range(1, REQUESTS + 1)]
        self.now: list[Request] = []

    def status(self) -> FleetStatus:
        """The fleet."""
        processes = tuple(self.processes.values())
        return FleetStatus(deployment="d", input_digest="", runtime_pid=1, front=None, ready=True, processes=processes)

    def events(self, after: int) -> tuple[Record, ...]:
        """Of the log."""
        return self.log.after(after)

    def listen(self, listener: Callable[[Record], None]) -> Callable[[], None]:
        """Of the log."""
        return self.log.listen(listener)

    def running(self) -> list[Request]:
        """Those of now."""
        return self.now

    def ended(self, after: int) -> list[Request]:
        """The last thousand."""
        return [one for one in self.past[-REQUESTS:] if one.number > after]

    def fleet(self) -> dict[str, Any]:
        """As planned."""
        need = {"device": "ram", "committed_bytes": GIB // 2, "peak_bytes": GIB, "file_bytes": GIB // 2}
        parts = {"model": GIB // 2, "kv": GIB // 4, "compute": GIB // 4}
        servers = [
            {
                "name": name,
                "start": "boot",
                "exclusive": None,
                "roles": [],
                "aliases": [],
                "memory": [need | {"parts": parts}],
                "embedding": False,
                "modalities": [],
                "rungs": [{"label": "q3", "bytes": GIB}],
            }
            for name in self.processes
        ]
        sizes = {"capacity_bytes": 64 * GIB, "budget_bytes": 60 * GIB, "worst_bytes": 50 * GIB}
        devices = [{"name": "ram", "kind": "ram", "nodes": [], **sizes}]
        names = list(self.processes)
        return {
            "deployment": "d",
            "devices": devices,
            "servers": servers,
            "services": [],
            "auto": ["auto"],
            "names": names,
        }

    async def loads(self) -> dict[str, Any]:
        """Nothing."""
        return {"gpus": [], "ram": {"free_bytes": 9 * GIB}, "nodes": []}

    def speeds(self) -> dict[str, list[tuple[int, float]]]:
        """An hour of every server."""
        now = int(time.time() // 60) * 60
        return {name: [(now - 60 * n, 30.0 + n % 7) for n in range(59, -1, -1)] for name in self.processes}

    async def projects(self) -> list[Any]:
        """None."""
        return []


async def load(host: Host, busy: Event) -> None:
    """20 events a second, each with a process that changed and a request that ended, while `busy` is set."""
    number = 0
    while True:
        await asyncio.sleep(1 / EVENTS_A_SECOND)
        if not busy.is_set():
            host.now = []
            continue
        number += 1
        name = f"server_{number % SERVERS:02}"
        host.processes[name] = process(number % SERVERS, in_flight=number % 4, tokens_per_second=30.0 + number % 7)
        host.past = [*host.past[-REQUESTS:], request(REQUESTS + number)]
        host.now = [request(0)]
        kind: Any = _KINDS[number % len(_KINDS)]
        host.log.add(Happened(kind=kind, name=name, message="something happened to it", cause="it was asked for"))


Live = Callable[[Host, Event], Coroutine[Any, Any, None]]


def serve(port: int, busy: Event, make: Callable[[], Host] = Host, live: Live = load) -> None:
    """The routes of the page, and the control API's, over a made-up host that `live` changes, until killed."""
    import uvicorn  # noqa: PLC0415 - the child's alone

    from launcher.route import control_app  # noqa: PLC0415
    from launcher.runtime.page.app import page_routes  # noqa: PLC0415

    async def main() -> None:
        host: Any = make()
        app = control_app(host, page_routes(host))
        loading = asyncio.create_task(live(host, busy))
        await uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", loop="uvloop")).serve()
        loading.cancel()

    asyncio.run(main())


def share(pid: int, seconds: float) -> float:
    """Percent of one core that a process takes for so long."""
    one = psutil.Process(pid)
    before = sum(one.cpu_times()[:2])
    time.sleep(seconds)
    return 100 * float(sum(one.cpu_times()[:2]) - before) / seconds


def measure(page: Browser, url: str, pid: int, busy: Event, seconds: float) -> None:
    """Print the figures."""
    bare = share(pid, seconds)
    busy.set()
    bare_busy = share(pid, seconds)
    busy.clear()
    paints = []
    for number in range(5):
        page.open(f"{url}?{number}")
        page.until(f"window.launch?.ended.length >= {REQUESTS}")
        paints.append(page.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    print(f"first paint, {SERVERS} servers: {sorted(paints)[2]:.0f} ms (median of 5)")
    rest = share(pid, seconds)
    busy.set()
    for view in VIEWS:
        page.js(f"location.hash = '{view}'; launch.longestUpdate = launch.updates = launch.script = 0")
        loaded = share(pid, seconds)
        longest, updates, script = (page.js(f"launch.{name}") for name in ("longestUpdate", "updates", "script"))
        average = script / max(1, updates)
        print(f"{view}: longest update {longest:.1f} ms of script, {average:.1f} on average of {updates}; ", end="")
        print(f"the stream takes {loaded - bare_busy:.1f} % of a core")
    print(f"no page: {bare:.1f} % of a core at rest, {bare_busy:.1f} % while the made-up fleet makes its events")
    print(f"one page at rest: {rest - bare:.1f} % of a core")
    if page.errors:
        print("scripts failed:", *page.errors, sep="\n")


def main() -> None:
    """Start, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each figure of processor time")
    seconds = parser.parse_args().seconds
    busy = multiprocessing.Event()
    port = free_port()
    child = multiprocessing.Process(target=serve, args=(port, busy), daemon=True)
    child.start()
    try:
        with browser() as page:
            page.size(1440, 900)
            time.sleep(2)
            measure(page, f"http://127.0.0.1:{port}/ui/", child.pid or 0, busy, seconds)
    finally:
        child.kill()
        child.join()


if __name__ == "__main__":
    main()
