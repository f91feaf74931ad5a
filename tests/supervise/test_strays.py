"""What somebody else started behind a living runtime (`systemctl start`): taken over, or ended; never a second one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from launcher.base.procfs import birth
from launcher.runtime.telling import happened
from launcher.supervise import Supervisor, events
from launcher.supervise.identity import new_record
from launcher.supervise.owner import Ending, Watcher
from tests.supervise.conftest import fake

FreePort = Callable[[], int]


def behind(supervisor: Supervisor, name: str, port: int | None = None) -> tuple[int, list[Ending]]:
    """A process of `name` that no runner has (on another `port`, or its own); its pid, and how it ended."""
    owner, spec = supervisor._owner, supervisor._runners[name].spec
    assert owner.log_dir is not None
    if port is not None:
        argv = tuple(str(port) if word == str(spec.unit.port) else word for word in spec.unit.argv)
        spec = msgspec.structs.replace(spec, unit=msgspec.structs.replace(spec.unit, argv=argv, port=port))
    record = new_record(supervisor._runners[name].spec, "test", "", str(owner.log_dir / f"{name}.log"), 0)
    endings: list[Ending] = []
    process = owner.start(spec, 0, record, Watcher(endings.append, lambda: None))
    owner.keep(msgspec.structs.replace(record, **birth(process.pid)))
    return process.pid, endings


async def look(supervisor: Supervisor) -> None:
    """One look."""
    await supervisor._strays.adopt_foreign()


async def test_what_nobody_runs_is_taken_over(fleet: Any, free_port: FreePort) -> None:
    """It is ready as if a request had started it, and one process runs; a second look changes nothing."""
    supervisor, watcher = fleet(fake("alpha", free_port()), fake("warm", free_port(), start="demand"))
    await supervisor.start()
    pid, _ = behind(supervisor, "warm")
    await look(supervisor)
    await watcher.until(events.ServerReady, "warm")
    await look(supervisor)
    (adopted,) = watcher.of(events.ServerAdopted)
    assert (adopted.name, adopted.pid, adopted.by_hand) == ("warm", pid, True)
    assert happened(adopted, is_up=True).cause == "somebody started its unit"
    assert supervisor._runners["warm"].pid == pid


async def test_what_another_runs_in_place_of_is_ended(fleet: Any, free_port: FreePort) -> None:
    """Of those that take turns, and of one that runs already, the second is ended; what runs is not touched."""
    port = free_port()
    turns = {"exclusive": "gpu"}
    supervisor, watcher = fleet(
        fake("one", port, default=True, **turns), fake("two", port, start="demand", **turns), fake("alpha", free_port())
    )
    await supervisor.start()
    pids = {name: supervisor._runners[name].pid for name in ("one", "alpha")}
    _, rival = behind(supervisor, "two", free_port())
    await look(supervisor)
    await watcher.until(events.ServerStopped, "two")
    _, second = behind(supervisor, "alpha", free_port())
    await look(supervisor)
    await watcher.until(events.ServerStopped, "alpha")
    assert (len(rival), len(second)) == (1, 1)
    stopping = [event for event in watcher.of(events.ServerStopping) if event.why == "by_hand"]
    assert [event.name for event in stopping] == ["two", "alpha"]
    assert "somebody started it beside" in happened(stopping[0], is_up=True).cause
    assert {name: supervisor._runners[name].pid for name in pids} == pids


async def test_of_those_that_take_turns_one_is_adopted(fleet: Any, free_port: FreePort) -> None:
    """Both were started while no runtime lived: the next one keeps the first, and ends the other."""
    port, other = free_port(), free_port()
    supervisor, watcher = fleet(
        fake("one", port, exclusive="gpu", default=True), fake("two", other, exclusive="gpu", start="demand")
    )
    pid, _ = behind(supervisor, "one")
    _, ended = behind(supervisor, "two")
    await supervisor._strays.take_over()
    await watcher.until(events.ServerStopped, "two")
    assert (supervisor._runners["one"].pid, len(ended)) == (pid, 1)


async def test_a_restart_of_all_says_what_it_started(fleet: Any, free_port: FreePort) -> None:
    """Of two that take turns and are both named, one is started; the other is not said to be."""
    port = free_port()
    supervisor, _ = fleet(
        fake("one", port, exclusive="gpu", default=True), fake("two", port, exclusive="gpu", start="demand")
    )
    await supervisor.start()
    await supervisor.stop(("one",))
    changes = await supervisor.reload(supervisor.manifest, ("one", "two"))
    assert (changes.started, changes.kept) == (("one",), ("two",))
