"""Priorities between keys: who waits for a slot, in simulated time and through the front."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.errors import HostError
from launcher.route import Front
from launcher.route.keys import read_keys
from launcher.route.target import Gate
from tests.route.fleet import FakeFleet, RawClient, front_unit, post, running, table, target, until
from tests.route.test_routing import Holding
from tests.supervise.simulated import SimulatedLoop

pytestmark = pytest.mark.timeout(30)
WAIT_S = 60.0


@example(slots=1, arrivals=[(0.0, 0, 1.0)] + [(0.0, 9 * (n % 2), 1.0) for n in range(80)])
@given(
    slots=st.integers(1, 3),
    arrivals=st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 1.0, 7.0]), st.integers(-2, 2), st.sampled_from([0.1, 1.0, 9.0])),
        max_size=40,
    ),
)
def test_by_priority_then_order_and_nobody_is_overtaken_for_long(
    slots: int, arrivals: list[tuple[float, int, float]]
) -> None:
    """Whoever is granted a slot comes before all that wait: by age, else priority, else order."""
    waiting: dict[int, tuple[float, int]] = {}
    """Since when, and how important, by number."""
    granted: list[int] = []

    async def ask(gate: Gate, number: int, priority: int, busy_s: float) -> None:
        now = asyncio.get_running_loop().time()
        waiting[number] = (now, priority)
        try:
            await gate.acquire(queue_size=100, timeout_s=WAIT_S, priority=priority)
        finally:
            now, mine = asyncio.get_running_loop().time(), waiting.pop(number)
        for other, (since, its) in waiting.items():
            aged, other_aged = now - mine[0] >= WAIT_S / 2, now - since >= WAIT_S / 2
            first = (not aged, 0 if aged else -priority, number) < (not other_aged, 0 if other_aged else -its, other)
            assert first, f"{number} went before {other}"
        granted.append(number)
        await asyncio.sleep(busy_s)
        gate.release()

    async def run() -> list[BaseException | None]:
        gate, tasks = Gate(slots), []
        for number, (pause_s, priority, busy_s) in enumerate(arrivals):
            await asyncio.sleep(pause_s)
            tasks.append(asyncio.create_task(ask(gate, number, priority, busy_s)))
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    loop = SimulatedLoop()
    try:
        ended = loop.run_until_complete(run())
    finally:
        loop.close()
    refused = [error for error in ended if error is not None]
    assert all(getattr(error, "code", error) == "queue_timeout" for error in refused)
    assert len(granted) + len(refused) == len(arrivals)


async def test_a_key_with_priority_goes_before_others(tmp_path: Path) -> None:
    """One slot, busy; who came last is answered next, since its key says so."""
    keys = tmp_path / "keys"
    keys.write_text("batch-key priority=-5\nplain-key\nchat-key name=chat priority=10 in_flight=3\n")
    keys.chmod(0o600)
    async with Holding() as up:
        front = Front(table(target("m", up.port, slots=1), front=front_unit(api_key_file=str(keys))), FakeFleet())
        async with (
            running(front) as port,
            RawClient(port) as first,
            RawClient(port) as batch,
            RawClient(port) as plain,
            RawClient(port) as chat,
        ):
            gate = front.view.targets["m"].gate
            clients = {"first": (first, "plain-key"), "batch": (batch, "batch-key")}
            clients |= {"plain": (plain, "plain-key"), "chat": (chat, "chat-key")}
            for number, (name, (client, key)) in enumerate(clients.items()):
                client.send(post({"who": name}, "/v1/completions", f"Authorization: Bearer {key}"))
                await until(lambda n=number: gate.in_flight + len(gate.waiters) == n + 1)  # type: ignore[misc]
            up.gate.set()
            assert [(await client.answer()).status for client, _ in clients.values()] == [200] * 4
        asked = [request.body.partition(b": ")[2] for request in up.requests]
    assert asked == [b'"first"}', b'"chat"}', b'"plain"}', b'"batch"}']


@pytest.mark.parametrize("written", ["101", "-101", "high", "1.5", ""])
def test_a_priority_that_is_none_is_named(tmp_path: Path, written: str) -> None:
    """By its line, without the key."""
    keys = tmp_path / "keys"
    keys.write_text(f"long-enough-key priority={written}\n")
    keys.chmod(0o600)
    with pytest.raises(HostError) as caught:
        read_keys(str(keys))
    assert "line 1: priority is a whole number from -100 to 100" in caught.value.findings[0].message
