"""A runtime that has just begun: requests wait until it knows what an earlier one left, and until what boots is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from launcher.ir.live import UnavailableError
from launcher.supervise import Supervisor, events
from launcher.supervise.spec import ProcessSpec
from tests.supervise.conftest import fake, wake
from tests.supervise.test_strays import behind

FreePort = Callable[[], int]


def slow_to_look(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """What lives is said once the event is set, as a busy systemd does it."""
    living, may_say = supervisor._owner.living, asyncio.Event()

    async def later(specs: Mapping[str, ProcessSpec]) -> Any:
        await may_say.wait()
        return await living(specs)

    monkeypatch.setattr(supervisor._owner, "living", later)
    return may_say


async def test_requests_wait_for_what_is_to_be_adopted(
    fleet: Any, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing shows as stopped and nothing is started before all that lives is known; then who waited is answered."""
    port = free_port()
    supervisor, watcher = fleet(
        fake("alpha", free_port()),
        fake("warm", free_port(), start="demand"),
        fake("one", port, exclusive="gpu", default=True),
        fake("two", port, exclusive="gpu"),
    )
    pids = {name: behind(supervisor, name)[0] for name in ("alpha", "warm", "two")}
    may_say = slow_to_look(supervisor, monkeypatch)
    recovering = asyncio.create_task(supervisor.recover())
    waiting = [asyncio.create_task(wake(supervisor, name, 30)) for name in pids]
    with pytest.raises(UnavailableError, match="not ready within"):
        await wake(supervisor, "one", 0.01)
    assert {supervisor.state(name) for name in (*pids, "one")} == {"starting"}
    assert supervisor.state("nobody") == "stopped"
    may_say.set()
    await recovering
    await supervisor.start()
    await asyncio.gather(*waiting)
    assert {event.name: event.pid for event in watcher.of(events.ServerAdopted)} == pids
    assert watcher.of(events.ServerStarting) == []
    await wake(supervisor, "one", 30)
    assert [event.name for event in watcher.of(events.Swapped)] == ["one"]


async def test_requests_wait_for_what_boots(fleet: Any, free_port: FreePort) -> None:
    """One that comes after another is on its way from the beginning; one that is stopped meanwhile stays so."""
    supervisor, watcher = fleet(
        fake("a", free_port(), "slow-loading"),
        fake("b", free_port(), after=("a",)),
        fake("c", free_port(), after=("a",)),
    )
    starting = asyncio.create_task(supervisor.start())
    await watcher.until(events.ServerStarting, "a")
    assert supervisor.state("b") == "starting"
    asked = asyncio.create_task(wake(supervisor, "b", 30))
    await supervisor.stop(("c",))
    await starting
    await asked
    assert supervisor.state("c") == "stopped"
    assert watcher.of(events.ServerStarting, "c") == []


async def test_who_waits_is_told_of_the_end(fleet: Any, free_port: FreePort, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is stopped before it knows what lives leaves nobody waiting, and nothing running."""
    supervisor, watcher = fleet(fake("warm", free_port(), start="demand"))
    may_say = slow_to_look(supervisor, monkeypatch)
    recovering = asyncio.create_task(supervisor.recover())
    asked = asyncio.create_task(wake(supervisor, "warm", 30))
    await asyncio.sleep(0)
    recovering.cancel()
    may_say.set()
    await supervisor.stop_all("test")
    with pytest.raises(UnavailableError, match="stopping"):
        await asked
    assert watcher.of(events.ServerStarting) == []
