"""Crowds at a server that is started on demand, swaps, and what an operator does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from launcher.ir.fleet import DeviceNeed
from launcher.supervise import events
from tests.faults.site import Site
from tests.supervise.conftest import fake, manifest, real

FreePort = Callable[[], int]
Tiny = Callable[..., Path]


def owners(site: Site) -> list[str]:
    """Names of servers whose process lives."""
    return [p.name for p in site.supervisor.status().processes if p.pid is not None]


async def test_two_hundred_first_requests(
    sites: Any, free_port: FreePort, llama_server: Path, tiny_models: Tiny
) -> None:
    """200 simultaneous first requests to a WARM server → one start, every one of them answered."""
    warm = real("warm", free_port(), llama_server, tiny_models("llama"), start="demand")
    async with sites(warm, queue_size=256) as site:
        answers = Counter(await asyncio.gather(*(site.ask("warm") for _ in range(200))))
        assert answers == {(200, ""): 200}
        assert len(site.watcher.of(events.ServerStarting)) == 1


async def test_more_than_the_queue_holds(sites: Any, free_port: FreePort) -> None:
    """100 simultaneous first requests to a WARM server with a queue of 20 → answers, and typed 503 for the rest."""
    async with sites(fake("warm", free_port(), start="demand"), queue_size=20) as site:
        answers = Counter(await asyncio.gather(*(site.ask("warm", sleep_s=0.01) for _ in range(100))))
        assert set(answers) == {(200, ""), (503, "queue_full")}
        assert answers[200, ""] >= 21


async def test_a_storm_that_disconnects(sites: Any, free_port: FreePort, llama_server: Path, smollm2: Path) -> None:
    """A storm of 60 streaming clients that disconnect → slots and descriptors free, the next is served."""
    async with sites(real("one", free_port(), llama_server, smollm2)) as site:
        assert await site.ask("one") == (200, "")
        before = psutil.Process().num_fds()
        storm = [asyncio.create_task(site.stream("one", asyncio.Event(), n_predict=400)) for _ in range(60)]
        await asyncio.sleep(0.5)
        for client in storm:
            client.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
        await site.until(lambda: site.status("one").in_flight == 0)
        assert await site.ask("one") == (200, "")
        await site.until(lambda: psutil.Process().num_fds() <= before + 8)


async def test_a_storm_that_leaves_before_the_start(sites: Any, free_port: FreePort) -> None:
    """50 clients that leave while a WARM server loads → it comes up once, idle, with nobody in it."""
    async with sites(fake("warm", free_port(), "slow-loading", start="demand")) as site:
        storm = [asyncio.create_task(site.ask("warm")) for _ in range(50)]
        await site.watcher.until(events.ServerStarting)
        for client in storm:
            client.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
        await site.watcher.until(events.ServerReady)
        assert len(site.watcher.of(events.ServerStarting)) == 1
        await site.until(lambda: not site.supervisor._runners["warm"].busy)


async def test_killed_under_two_hundred_waiters(sites: Any, free_port: FreePort) -> None:
    """Kill -9 of a WARM server while 100 wait for it → each gets a typed 503, none hangs."""
    async with sites(fake("warm", free_port(), "hang-loading", start="demand")) as site:
        waiting = [asyncio.create_task(site.ask("warm")) for _ in range(100)]
        starting = await site.watcher.until(events.ServerStarting)
        await asyncio.sleep(0.2)
        os.kill(starting.pid, signal.SIGKILL)
        assert Counter(await asyncio.gather(*waiting)) == {(503, "server_failed"): 100}


async def test_stop_of_a_server_that_is_waited_for(sites: Any, free_port: FreePort) -> None:
    """`stop NAME` of a WARM server that loads → it ends, who waits gets a typed 503, a later request starts it."""
    async with sites(fake("warm", free_port(), "slow-loading", start="demand")) as site:
        asked = asyncio.create_task(site.ask("warm"))
        await site.watcher.until(events.ServerStarting)
        async with asyncio.timeout(10):
            await site.supervisor.stop(("warm",))
        assert await asked == (503, "server_stopped")
        assert await site.ask("warm") == (200, "")


async def test_stop_of_a_boot_server_holds(sites: Any, free_port: FreePort) -> None:
    """`stop NAME` of a boot server → stays so, says `status`, through other reloads; `reload NAME` starts it."""
    a, b = fake("a", free_port()), fake("b", free_port())
    async with sites(a, b) as site:
        await site.supervisor.stop(("a",))
        assert await site.ask("a") == (503, "server_stopped")
        assert "by an operator" in site.status("a").error
        assert (await site.supervisor.reload(manifest(a, b), ())).started == ()
        assert await site.ask("a") == (503, "server_stopped")
        assert (await site.supervisor.reload(manifest(a, b), ("a",))).started == ("a",)
        assert await site.ask("a") == (200, "")


async def test_stop_during_start(sites: Any, free_port: FreePort) -> None:
    """Everything is stopped while one server is ready, one loads and one waits for it → nothing left."""
    loading = fake("b", free_port(), "hang-loading")
    async with sites(fake("a", free_port(), start="demand")) as site:
        starting = asyncio.create_task(site.supervisor.reload(manifest(fake("a", free_port()), loading), ()))
        await site.watcher.until(events.ServerStarting, "b")
        await site.supervisor.stop_all("test")
        await asyncio.gather(starting, return_exceptions=True)
        assert owners(site) == []


async def test_reload_during_a_swap(sites: Any, free_port: FreePort) -> None:
    """A reload in the middle of a swap → it waits its turn; never two owners of the device; every request answered."""
    port = free_port()
    first = [fake(n, port, "slow-loading", exclusive="g", default=n == "a") for n in "ab"]
    second = [fake(n, port, "slow-loading", exclusive="g", default=n == "a", note="new") for n in "ab"]
    async with sites(*first) as site:
        seen: set[int] = set()

        async def look() -> None:
            while True:
                seen.add(len(owners(site)))
                await asyncio.sleep(0.005)

        looking = asyncio.create_task(look())
        asked = [asyncio.create_task(site.ask(n)) for n in "bab"]
        await site.watcher.until(events.ServerStopping)
        changes = await site.supervisor.reload(manifest(*second), ())
        assert Counter(await asyncio.gather(*asked)) == {(200, ""): 3}
        looking.cancel()
        assert max(seen) == 1
        assert changes.restarted in {("a",), ("b",)}
        assert await site.ask("a") == (200, "")
        assert site.status("a").drift == ""


async def test_reload_of_what_is_asked_for(sites: Any, free_port: FreePort) -> None:
    """A reload restarts a server while 40 requests come → those in flight end, the others wait; none is refused."""
    port = free_port()
    async with sites(fake("a", port)) as site:
        asked = []
        for number in range(40):
            asked.append(asyncio.create_task(site.ask("a", sleep_s=0.02)))
            if number == 10:
                reloading = asyncio.create_task(site.supervisor.reload(manifest(fake("a", port, note="new")), ()))
            await asyncio.sleep(0.01)
        assert (await reloading).restarted == ("a",)
        assert Counter(await asyncio.gather(*asked)) == {(200, ""): 40}


async def test_a_failed_swap(sites: Any, free_port: FreePort) -> None:
    """The server that is swapped in does not start → a typed 503, and the one that was swapped out is back."""
    good = fake("good", free_port(), exclusive="g", default=True)
    async with sites(good, fake("bad", free_port(), "exit-1", exclusive="g")) as site:
        assert await site.ask("bad") == (503, "server_failed")
        assert await site.ask("good") == (200, "")
        assert owners(site) == ["good"]


async def test_no_room_beside_busy_ones(sites: Any, free_port: FreePort) -> None:
    """A WARM server does not fit beside busy ones → it waits for the first that is idle; nobody busy is stopped."""
    need = (DeviceNeed(device="ram", committed_bytes=600, peak_bytes=600, file_bytes=0),)
    servers = [fake(n, free_port(), start="demand", memory=need) for n in "ab"]
    async with sites(*servers) as site:
        busy = asyncio.create_task(site.ask("a", sleep_s=0.6))
        await site.watcher.until(events.ServerReady, "a")
        await site.until(lambda: site.status("a").in_flight)
        assert await site.ask("b") == (200, "")
        assert await busy == (200, "")
        assert owners(site) == ["b"]


async def test_never_room(sites: Any, free_port: FreePort) -> None:
    """A WARM server that cannot fit beside what always runs → a typed 503 at once; nothing is stopped for it."""
    need = (DeviceNeed(device="ram", committed_bytes=950, peak_bytes=950, file_bytes=0),)
    async with sites(fake("hot", free_port()), fake("huge", free_port(), start="demand", memory=need)) as site:
        assert await site.ask("huge") == (503, "no_room")
        assert owners(site) == ["hot"]


async def test_the_front_is_asked_by_a_stalled_client(sites: Any, free_port: FreePort) -> None:
    """A client sends half a request and stops → it holds no slot; others are answered meanwhile."""
    async with sites(fake("one", free_port())) as site:
        port = int(site.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /completion HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        await writer.drain()
        assert await site.ask("one") == (200, "")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
