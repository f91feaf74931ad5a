"""A swap of the exclusive worker under load, with real servers: nobody is lost, nobody answered by the wrong model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from launcher.supervise import events
from tests.supervise.conftest import fake, real, wake
from tests.supervise.test_out_of_memory import ask, front_of

FreePort = Callable[[], int]


async def test_a_swap_under_load_loses_nobody(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """Two models on one port, 50 mixed requests at once, streams too: 50 right answers, one process at a time."""
    port, turns = free_port(), {"exclusive": "gpu", "start": "demand"}
    units = [
        real(name, port, llama_server, tiny_models("llama", seed=seed), "--alias", name, **turns)
        for seed, name in ((1, "one"), (2, "two"))
    ]
    units[0] = msgspec.structs.replace(units[0], start="boot", default=True)
    supervisor, watcher = fleet(*units)
    await supervisor.start()
    order = ["one", "two"] * 25
    random.Random(5).shuffle(order)  # noqa: S311 - a fixed order

    async with front_of(supervisor, free_port()) as client:
        truth = {}
        for name in ("one", "two"):
            answer = (await ask(client, name, prompt="Once upon a time", n_predict=12, temperature=0)).json()
            truth[name] = answer["content"]
        assert truth["one"] != truth["two"]
        before = len(watcher.of(events.Swapped))

        async def one(number: int, name: str) -> tuple[str, str]:
            await asyncio.sleep(number * 0.01)
            answer = await ask(
                client, name, prompt="Once upon a time", n_predict=12, temperature=0, stream=number % 5 == 0
            )
            assert answer.status_code == 200, answer.text
            if number % 5:
                return answer.json()["model"], answer.json()["content"]
            parts = [msgspec.json.decode(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            return name, "".join(part["content"] for part in parts)

        answers = await asyncio.gather(*(one(n, name) for n, name in enumerate(order)))
    assert [text for _, text in answers] == [truth[name] for name in order]
    assert all(model == name for (model, _), name in zip(answers, order, strict=True))
    swaps = watcher.of(events.Swapped)[before:]
    assert swaps
    assert all(0 < swap.seconds < 60 and swap.instead_of != (swap.name,) for swap in swaps)
    alive: set[str] = set()
    for event in watcher.events:
        if isinstance(event, events.ServerStarting):
            alive.add(event.name)
        elif isinstance(event, events.ServerStopped):
            alive.discard(event.name)
        assert len(alive) <= 1


async def test_a_swap_that_fails_is_rolled_back_and_everybody_answered(fleet: Any, free_port: FreePort) -> None:
    """The other worker cannot start: who asked for it is told why, who asked for the first is served by it again."""
    port = free_port()
    good, bad = (
        fake("good", port, exclusive="gpu", default=True),
        fake("bad", port, "exit-1", exclusive="gpu", start="demand"),
    )
    supervisor, watcher = fleet(good, bad)
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        order = ["good", "bad", "good", "good", "bad", "good"] * 3
        answers = await asyncio.gather(*(ask(client, name) for name in order))
        told = {(name, answer.status_code) for name, answer in zip(order, answers, strict=True)}
        assert told == {("good", 200), ("bad", 503)}
        assert all("nonsense" in a.text for n, a in zip(order, answers, strict=True) if n == "bad")
        assert (await ask(client, "good")).status_code == 200
    assert watcher.of(events.Swapped, "bad") == []
    assert supervisor.state("good") == "ready"


async def test_who_was_swapped_out_has_not_failed(fleet: Any, free_port: FreePort) -> None:
    """The runtime dies while the other worker has the device: the next one adopts that, and says that all is well."""
    port = free_port()
    units = (
        fake("first", port, exclusive="gpu", default=True),
        fake("second", port, exclusive="gpu", start="demand"),
    )
    supervisor, _ = fleet(*units)
    await supervisor.start()
    await wake(supervisor, "second", 20)
    supervisor.abandon()
    again, watcher = fleet(*units)
    await again.recover()
    await again.start()
    assert watcher.of(events.FleetReady)[0].failed == ()
    await watcher.until(events.ServerReady, "second")
    await again.stop_all("end of test")
    child = supervisor._runners["second"]._process.popen
    await asyncio.to_thread(child.wait)


async def test_a_displaced_default_comes_back_by_itself(fleet: Any, free_port: FreePort) -> None:
    """Who displaced it was idle too long: the default is started again, and the fleet is ready, unasked."""
    port = free_port()
    supervisor, watcher = fleet(
        fake("first", port, exclusive="gpu", default=True),
        fake("second", port, exclusive="gpu", start="demand", idle_timeout_s=0.3),
    )
    await supervisor.start()
    await wake(supervisor, "second", 20)
    await watcher.until(events.ServerStopped, "second")
    await watcher.until(events.ServerReady, "first", count=2)
    assert supervisor.ready()


async def test_a_default_that_an_operator_stopped_stays_away(fleet: Any, free_port: FreePort) -> None:
    """Only who was displaced comes back."""
    port = free_port()
    supervisor, watcher = fleet(fake("first", port, exclusive="gpu", default=True))
    await supervisor.start()
    await supervisor.stop(("first",))
    await asyncio.sleep(1.2)  # a round of the loop that would start it
    assert len(watcher.of(events.ServerReady, "first")) == 1
