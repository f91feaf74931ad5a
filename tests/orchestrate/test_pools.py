"""Worker pools by task type: who serves what, and when a pool grows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from launcher.ir.fleet import RoutePool
from launcher.ir.live import UnavailableError
from launcher.route import Front
from launcher.route.view import grows_above
from tests.route.fleet import OK, FakeFleet, RawClient, Upstream, post, running, table, target, until

POOL = RoutePool(
    name="fast", servers=("fast_1", "fast_2"), task_types=("boilerplate", "code_impl"), expansion_threshold=4
)


class Burst:
    """Two servers of the pool, of which the second sleeps; requests are held until the test lets them go."""

    def __init__(self, **second: Any) -> None:
        """Nothing runs yet."""
        self.go = asyncio.Event()
        self.fleet = FakeFleet(fast_2="stopped")
        self.first, self.second = Upstream(self._serve(0)), Upstream(self._serve(1))
        self.fields = second

    def _serve(self, number: int) -> Any:
        """The script of one server."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Answer when told."""
            while True:
                await (self.first, self.second)[number].read(reader)
                await self.go.wait()
                writer.write(OK)

        return script

    def front(self) -> Front:
        """The front over both."""
        units = (
            target("fast_1", self.first.port, slots=8, start="demand", **self.fields),
            target("fast_2", self.second.port, slots=8, start="demand", **self.fields),
        )
        names = {"fast_1": ("fast_1",), "fast_2": ("fast_2",), "worker_coder": ("fast_1", "fast_2")}
        unit = table(*units, pools=(POOL,), names=names)
        return Front(unit, self.fleet)


async def send(port: int, *headers: str, model: str | None = None) -> int:
    """One request; its status."""
    body: dict[str, Any] = {"messages": []} | ({"model": model} if model else {})
    async with RawClient(port) as client:
        return (await client.ask(post(body, "/v1/chat/completions", "Content-Type: application/json", *headers))).status


async def test_the_fifth_request_starts_the_second_server() -> None:
    """Four in flight start nothing; the fifth goes to the first server and starts the second, which serves next."""
    burst = Burst()
    async with burst.first, burst.second, running(burst.front()) as port:
        asked = [asyncio.create_task(send(port, "X-Task-Type: boilerplate")) for _ in range(4)]
        await until(lambda: len(burst.first.requests) == 4)
        assert burst.fleet.woken == []
        asked += [asyncio.create_task(send(port, model="worker_coder"))]
        await until(lambda: len(burst.first.requests) == 5)
        await until(lambda: burst.fleet.woken == ["fast_2"])
        asked += [asyncio.create_task(send(port, "X-Task-Type: code_impl"))]
        await until(lambda: len(burst.second.requests) == 1)
        burst.go.set()
        assert await asyncio.gather(*asked) == [200] * 6


async def test_one_start_for_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    """Many requests at once begin one start; where it fails, the first server serves all, and it is tried again."""
    burst = Burst()
    refused = asyncio.Event()

    async def no_room(_: str) -> None:
        """Refuse when told."""
        await refused.wait()
        raise UnavailableError("no_room", "there is no room")

    burst.fleet.on_wake = no_room
    async with burst.first, burst.second, running(burst.front()) as port:
        asked = [asyncio.create_task(send(port, model="fast")) for _ in range(8)]
        await until(lambda: len(burst.first.requests) == 8)
        assert burst.fleet.woken == ["fast_2"]
        refused.set()
        await until(lambda: "there is no room" in caplog.text)
        asked += [asyncio.create_task(send(port, model="fast"))]
        await until(lambda: burst.fleet.woken == ["fast_2"] * 2)
        burst.go.set()
        assert await asyncio.gather(*asked) == [200] * 9


async def test_an_exclusive_pool_does_not_grow() -> None:
    """Starting the other member would stop the busy one."""
    burst = Burst(exclusive="gpu")
    async with burst.first, burst.second, running(burst.front()) as port:
        asked = [asyncio.create_task(send(port, model="fast")) for _ in range(6)]
        await until(lambda: len(burst.first.requests) == 6)
        assert burst.fleet.woken == []
        burst.go.set()
        assert await asyncio.gather(*asked) == [200] * 6


def test_which_names_grow() -> None:
    """The pool's own name and replicas within it; not a single server, not a pool without a threshold."""
    still = RoutePool(name="still", servers=("a", "b"), task_types=(), expansion_threshold=0)
    tiers = {"fast": ("fast_1", "fast_2"), "fast_1": ("fast_1",), "still": ("a", "b"), "mixed": ("fast_1", "a")}
    found = {name: grows_above((POOL, still), servers) for name, servers in tiers.items()}
    assert found == {"fast": 4, "fast_1": 0, "still": 0, "mixed": 0}
