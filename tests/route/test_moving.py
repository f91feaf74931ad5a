"""Requests that wait for a slot get the first that is free at any server that may answer them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from launcher.ir.fleet import RoutePool
from launcher.route import Front
from tests.route.fleet import OK, FakeFleet, RawClient, answering, ask, post, running, table, target, until
from tests.route.test_routing import Holding

pytestmark = pytest.mark.timeout(300)


async def test_waiters_move_to_a_server_that_joins() -> None:
    """The pool expands: all but the one that is computed are answered by the second server, in their order."""
    async with Holding() as first, answering(OK) as second:
        pool = RoutePool(name="p", servers=("a", "b"), task_types=(), expansion_threshold=3)
        units = (target("a", first.port, slots=1), target("b", second.port, slots=1, start="demand"))
        fleet = FakeFleet(b="stopped")
        started = asyncio.Event()

        async def wake(name: str) -> None:
            await started.wait()
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        front = Front(table(*units, names={"a": ("a",), "b": ("b",), "p": ("a", "b")}, pools=(pool,)), fleet)
        async with running(front) as port:
            clients = [await RawClient(port).__aenter__() for _ in range(6)]
            only_a = await RawClient(port).__aenter__()
            gate = front.view.targets["a"].gate
            for i, client in enumerate(clients):
                client.send(post({"model": "p", "n": i}, "/v1/completions"))
                await until(lambda i=i: gate.in_flight + len(gate.waiters) == i + 1)  # type: ignore[misc]
            only_a.send(post({"model": "a"}, "/v1/completions"))
            await until(lambda: len(gate.waiters) == 6 and fleet.woken == ["b"])
            started.set()
            moved = [(await client.answer()).headers["x-launch-server"] for client in clients[1:]]
            waiting = len(gate.waiters)
            first.gate.set()
            own = [(await c.answer()).headers["x-launch-server"] for c in (clients[0], only_a)]
            for client in (*clients, only_a):
                await client.__aexit__()
    assert moved == ["b"] * 5
    assert [request.body for request in second.requests] == [b'{"model": "p", "n": %d}' % i for i in range(1, 6)]
    assert (waiting, own) == (1, ["a", "a"])


async def test_a_burst_that_comes_while_nobody_runs_is_shared() -> None:
    """All six wait for the first server to start; then they wait for its slot, and the second joins for them."""
    async with Holding() as first, answering(OK) as second:
        pool = RoutePool(name="p", servers=("a", "b"), task_types=(), expansion_threshold=3)
        units = (target("a", first.port, slots=1, start="demand"), target("b", second.port, slots=1, start="demand"))
        fleet = FakeFleet(a="stopped", b="stopped")
        loaded = asyncio.Event()

        async def wake(name: str) -> None:
            await loaded.wait()
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        front = Front(table(*units, names={"a": ("a",), "b": ("b",), "p": ("a", "b")}, pools=(pool,)), fleet)
        async with running(front) as port, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RawClient(port)) for _ in range(6)]
            for client in clients:
                client.send(post({"model": "p"}, "/v1/completions"))
            await until(lambda: fleet.woken.count("a") == 6)
            loaded.set()
            await until(lambda: len(second.requests) == 5)
            first.gate.set()
            servers = [(await client.answer()).headers["x-launch-server"] for client in clients]
    assert sorted(servers) == ["a"] + ["b"] * 5


async def test_a_burst_starts_as_many_as_it_needs() -> None:
    """All of it has come before the first of the pool's others is up: the next is started all the same."""
    async with Holding() as first, Holding() as second, answering(OK) as third:
        pool = RoutePool(name="p", servers=("a", "b", "c"), task_types=(), expansion_threshold=3)
        later = [target(n, up.port, slots=1, start="demand") for n, up in (("b", second), ("c", third))]
        fleet = FakeFleet(b="stopped", c="stopped")
        arrived = asyncio.Event()

        async def wake(name: str) -> None:
            await arrived.wait()
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        front = Front(
            table(target("a", first.port, slots=1), *later, names={"p": ("a", "b", "c")}, pools=(pool,)), fleet
        )
        async with running(front) as port, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RawClient(port)) for _ in range(6)]
            gate = front.view.targets["a"].gate
            for client in clients:
                client.send(post({"model": "p"}, "/v1/completions"))
            await until(lambda: gate.in_flight + len(gate.waiters) == 6)
            arrived.set()
            await until(lambda: fleet.woken == ["b", "c"])
            first.gate.set()
            second.gate.set()
            assert {(await client.answer()).status for client in clients} == {200}


async def test_a_slot_that_is_free_is_offered_to_who_waits_beside() -> None:
    """Both replicas are busy; who waits for one is answered by the other, when that is free first."""
    async with Holding() as a, Holding() as b:
        units = [target(n, up.port, slots=1, roles=("twin",)) for n, up in (("a", a), ("b", b))]
        front = Front(table(*units), FakeFleet())
        async with running(front) as port, RawClient(port) as one, RawClient(port) as two, RawClient(port) as three:
            gates = [front.view.targets[n].gate for n in "ab"]
            for client in (one, two):
                client.send(post({"model": "twin"}, "/v1/completions"))
            await until(lambda: [g.in_flight for g in gates] == [1, 1])
            three.send(post({"model": "twin"}, "/v1/completions"))
            await until(lambda: sum(len(g.waiters) for g in gates) == 1)
            waits, other = ("a", b) if gates[0].waiters else ("b", a)
            other.gate.set()
            third = (await three.answer()).headers["x-launch-server"]
            (b if other is a else a).gate.set()
            await one.answer()
            await two.answer()
    assert third != waits


@pytest.mark.parametrize("ruled", ["by the routes", "by its process"])
async def test_who_waits_goes_where_the_server_has_moved(ruled: str) -> None:
    """H20: five wait for its one slot while a reload gives it another port; all are answered, at the new one."""
    async with Holding() as old, answering(OK) as new:
        fleet = FakeFleet()
        front = Front(table(target("m", old.port, slots=1)), fleet)
        async with running(front) as port, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RawClient(port)) for _ in range(6)]
            gate = front.view.targets["m"].gate
            for i, client in enumerate(clients):
                client.send(post({"n": i}, "/v1/completions"))
                await until(lambda i=i: gate.in_flight + len(gate.waiters) == i + 1)  # type: ignore[misc]
            if ruled == "by its process":
                fleet.addresses["m"] = ("127.0.0.1", old.port)
            front.replace_table(table(target("m", new.port, slots=1)))
            if ruled == "by its process":
                late = await stack.enter_async_context(RawClient(port))
                late.send(post({"n": 6}, "/v1/completions"))
                clients.append(late)
                await until(lambda: len(gate.waiters) == 6)
                fleet.addresses["m"] = ("127.0.0.1", new.port)
            old.gate.set()
            answers = [await client.answer() for client in clients]
            assert [answer.status for answer in answers] == [200] * len(clients)
            assert (len(old.requests), len(new.requests)) == (1, len(clients) - 1)
            assert not [c for c in front.view.targets["m"].pool.idle if c.address[1] != new.port]


async def test_until_its_process_has_ended_a_server_is_asked_where_that_listens() -> None:
    """H20: the routes name the next port before it is there. A name that goes to another host is another server."""
    async with answering(OK) as old, answering(OK) as new:
        fleet = FakeFleet()
        front = Front(table(target("m", old.port)), fleet)
        async with running(front) as port:
            fleet.addresses["m"] = ("127.0.0.1", old.port)
            front.replace_table(table(target("m", new.port)))
            for _ in range(2):
                assert (await ask(port, post({}))).status == 200
            fleet.addresses["m"] = ("127.0.0.1", new.port)
            assert (await ask(port, post({}))).status == 200
            assert (len(old.requests), len(new.requests)) == (2, 1)
            before = front.view.targets["m"]
            front.replace_table(table(target("m", new.port, host="localhost")))
            assert front.view.targets["m"] is not before
