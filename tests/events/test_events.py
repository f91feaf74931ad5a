"""The store of events: what survives restarts, damage and a disk that fails; bounds; who listens; how they are told."""

from __future__ import annotations

import os
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.events import FILE_NAME, EventLog, read_records, store_files
from launcher.events.log import KEPT
from launcher.events.store import MAX_LINE_BYTES, Store, older
from launcher.ir.answers import json_schema
from launcher.ir.events import Happened, Record
from launcher.ir.page import EventLists
from launcher.runtime.telling import happened
from launcher.supervise import events
from tests.children import killed_on_failure
from tests.cli.conftest import Cli, cli  # noqa: F401 - a fixture


def some(number: int, **more: object) -> Happened:
    """An event that can be told apart."""
    return Happened(kind="ready", name=f"s{number}", message=f"event {number}", **more)  # type: ignore[arg-type]


def test_events_survive_a_restart_and_their_numbers_grow(tmp_path: Path) -> None:
    """The second runtime has the events of the first, also where the clock went back between them."""
    path = tmp_path / "events.jsonl"
    first = EventLog(path, clock=lambda: 2000.0)
    before = [first.add(some(n, cause="why", details={"seconds": 1.5})) for n in range(3)]
    first.close()
    second = EventLog(path, clock=lambda: 1000.0)
    after = second.add(some(9))
    assert second.after() == (*before, after)
    assert after.id > before[-1].id > before[0].id >= 2000_000
    assert second.after(before[1].id) == (before[2], after)
    assert second.after(since=1500) == tuple(before)


@pytest.mark.parametrize("place", ["newest", "older", "both"])
def test_a_pipe_in_the_place_of_a_store_holds_nobody_up(tmp_path: Path, place: str) -> None:
    """What it would hold is lost, and all else goes on."""
    path = tmp_path / "events.jsonl"
    for pipe in {"newest": [path], "older": [older(path)], "both": [path, older(path)]}[place]:
        os.mkfifo(pipe)
    log = EventLog(path)
    kept = log.add(some(1))
    log.close()
    assert log.after() == (kept,)
    assert read_records(path) == ([kept] if place == "older" else [])


def test_a_number_that_is_nearly_too_high_spoils_no_later_one(tmp_path: Path) -> None:
    """A flipped bit in one line costs that line: events that come after it are found again."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":9007199254740991,"at":1.0,"kind":"ready","message":"m"}\n')
    log = EventLog(path)
    kept = log.add(some(1))
    log.close()
    assert kept in read_records(path)


NEVER = b'{"id":5,"at":1e300,"kind":"ready","message":"m"}\n'
BEYOND = b'{"id":9007199254740993,"at":1.0,"kind":"ready","message":"m"}\n'


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b'{"id":1', b"[" * 5000, b"\n\n", b'{"id":"x"}\n', NEVER, BEYOND])
def test_a_damaged_store_costs_its_damage_only(tmp_path: Path, damage: bytes) -> None:
    """A torn last line, another encoding, foreign JSON: the rest is read, and what comes is kept."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    kept = log.add(some(1))
    log.close()
    with path.open("ab") as file:
        file.write(damage)
    log = EventLog(path)
    more = log.add(some(2))
    log.close()
    assert read_records(path) == [kept, more]


@given(data=st.binary(max_size=300))
def test_no_bytes_in_the_store_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever stands there, a runtime begins, and can add to it."""
    path = tmp_path_factory.mktemp("store") / "events.jsonl"
    path.write_bytes(data)
    log = EventLog(path)
    added = log.add(some(1))
    log.close()
    assert read_records(path)[-1] == added


@pytest.mark.parametrize("fault", ["directory", "missing", "link"])
def test_a_disk_that_cannot_be_written_is_told_once_and_tried_again(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Events go on in memory; when the place can be written again, they are kept again."""
    path = tmp_path / "state" / "events.jsonl"
    if fault == "directory":
        path.mkdir(parents=True)
    elif fault == "link":
        path.parent.mkdir()
        path.symlink_to(tmp_path / "elsewhere")
    log = EventLog(path)
    lost = [log.add(some(n)) for n in range(3)]
    assert caplog.text.count("events are not kept on disk") == 1
    assert not (tmp_path / "elsewhere").exists()
    if fault == "directory":
        path.rmdir()
    elif fault == "link":
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    kept = log.add(some(4))
    log.close()
    assert log.after() == (*lost, kept)
    assert read_records(path) == [kept]


def test_a_full_disk_tears_no_later_line(tmp_path: Path) -> None:
    """What was written in part stands on a line of its own."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":1,"at":2.0,"kind":"rea')
    store = Store(path)
    record = Record(id=5, at=1.0, kind="ready", message="m")
    store.append(record)
    store.close()
    assert read_records(path) == [record]


def test_the_store_is_bounded(tmp_path: Path) -> None:
    """Two files of at most so many bytes; the newest events are there; a line that is too long is cut."""
    path = tmp_path / "events.jsonl"
    store = Store(path, max_bytes=4000)
    for number in range(300):
        store.append(Record(id=1 + number, at=0.0, kind="ready", message="m" * 40))
        assert path.stat().st_size <= 4000
    store.append(Record(id=301, at=0.0, kind="failed", message="m" * 40, details={"tail": "x" * MAX_LINE_BYTES}))
    store.close()
    assert older(path).stat().st_size <= 4000
    numbers = [record.id for record in read_records(path)]
    assert numbers == list(range(numbers[0], 302))
    assert len(numbers) > 40
    assert read_records(path)[-1].details == {}


def test_requests_never_push_out_what_happened_to_the_fleet(tmp_path: Path) -> None:
    """Decisions are kept apart, in memory and on disk, and told in one order with the rest; also after a restart."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    first = log.add(some(1))
    for number in range(KEPT + 500):
        log.add(Happened(kind="decision", name="w", message=f"decided {number}"))
    last = log.add(some(2))
    log.close()
    for seen in (log, EventLog(path)):
        told = seen.after()
        assert (told[0], told[-1], len(told)) == (first, last, KEPT + 2)
        assert [record.id for record in told] == sorted(record.id for record in told)
        assert [record.message for record in seen.after(told[-3].id)] == [f"decided {KEPT + 499}", "event 2"]
    assert [record.id for record in read_records(path)] == sorted(record.id for record in read_records(path))
    assert {file.name for file in store_files(path) if file.is_file()} == {"events.jsonl", "events-requests.jsonl"}


def test_who_listens_hears_until_it_ends_that(tmp_path: Path) -> None:
    """A listener that leaves while others are told harms nobody."""
    log = EventLog(tmp_path / "events.jsonl")
    heard: list[Record] = []
    end = log.listen(heard.append)
    first = log.add(some(1))
    end()
    end()
    log.add(some(2))
    assert heard == [first]


LINES = tuple(map(str, range(200)))


def test_every_event_of_the_runtime_is_told_with_its_cause() -> None:
    """Each class of `AnyEvent` becomes an event for people; what decided is in its cause or details."""
    base = {"name": "a", "pid": 1}
    told = [
        happened(event, is_up=is_up)
        for event, is_up in (
            (events.ServerStarting(**base, port=5, log_file=""), False),
            (events.ServerStarting(**base, port=5, log_file=""), True),
            (events.ServerStarting(**base, port=5, log_file="", restart=2), True),
            (events.ServerFailed(name="a", code="x/y", cause="it broke", final=False, retry_s=2, tail=LINES), True),
            (events.ServerSlow(name="a", seconds=181, expected_s=40), True),
            (events.RungTaken(name="a", rung="1/2: q4", why="out of memory"), True),
            (events.RungTaken(name="a", rung="", why="room again"), True),
            (events.Swapped(name="a", instead_of=("b", "c"), seconds=1.25), True),
            (events.RoomMade(name="a", going=("b",), needs={"ram": 2**30}, weighed={"b": {"idle_s": 9.0}}), True),
            (events.ServerStopping(name="a", why="evicted"), True),
            (events.ServerStopping(name="a", why="idle"), True),
            (events.FleetReloaded(started=("a",), stopped=(), restarted=("b",), kept=()), True),
            (events.FleetReloaded(started=(), stopped=(), restarted=(), kept=("c",)), True),
            (events.HookDone(name="h", seconds=1, error="exit 1"), True),
        )
    ]
    assert [(t.kind, t.message, t.cause) for t in told] == [
        ("starting", "starts on port 5", "it starts with the fleet"),
        ("starting", "starts on port 5", "asked for by a request, a reload or a command"),
        ("starting", "starts on port 5", "its process ended unasked: restart 2"),
        ("failed", "failed; it is tried again in 2.0 s", "it broke"),
        ("slow", "still loads after 181 s; 40 s were expected", "it gets on, so that it is waited for"),
        ("degraded", "is started smaller: 1/2: q4", "out of memory"),
        ("restored", "runs as planned again", "room again"),
        ("swap", "serves in place of b, c after 1.25 s", "a request asked for it"),
        ("room", "b must go for it", "it needs 1.0 GiB of ram; of those that may go they are missed least"),
        ("evicted", "stops", "another server needs its memory"),
        ("stopping", "stops", "nobody asked for it for as long as it may be idle"),
        ("reload", "started a; restarted b", ""),
        ("reload", "no process changed", ""),
        ("hook", "failed in 1.00 s", "exit 1"),
    ]
    (failed,) = (t for t in told if t.kind == "failed")
    assert failed.details["tail"] == tuple(map(str, range(180, 200)))
    for record in told:
        assert msgspec.json.decode(msgspec.json.encode(record), type=Happened).message == record.message


def test_events_in_the_shell(cli: Cli) -> None:  # noqa: F811
    """Of a fleet that runs no more: lines with times and causes, those since a time, JSON, and what comes."""
    state = cli.home / "state/launch/gone"
    (state / "servers").mkdir(parents=True)
    log = EventLog(state / FILE_NAME, clock=lambda: 1_700_000_000.0)
    log.add(some(1, cause="because \x1b[2Jof it"))
    log.close()
    (shown,) = cli.run("events").stdout.splitlines()
    assert shown.endswith("ready      s1: event 1  (because �[2Jof it)")
    assert shown[:3] == "202"
    assert cli.run("events", "--since", "2h").stdout == "nothing is known to have happened\n"
    assert "--since: 'soon' is no time" in cli.run("events", "--since", "soon", code=2).stderr
    document = cli.json("events", "--since", "2020-01-01")
    jsonschema.validate(document, json_schema("launch.event-lists/v1"))
    assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(document, EventLists))) == document
    [fleet] = document["fleets"]
    jsonschema.validate(fleet, json_schema("launch.events/v1"))
    assert [event["name"] for event in fleet["events"]] == ["s1"]
    with killed_on_failure(cli.start("events", "-f", "--since", "2020-01-01", "--json")) as following:
        assert following.stdout is not None
        assert msgspec.json.decode(following.stdout.readline())["name"] == "s1"
        log.add(some(2))
        log.close()
        assert msgspec.json.decode(following.stdout.readline())["name"] == "s2"
        following.terminate()
