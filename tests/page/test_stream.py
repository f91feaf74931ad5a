"""The stream and the static files, by a control application over a host that is told what to say."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import jsonschema
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from launcher.events import EventLog
from launcher.ir.answers import json_schema
from launcher.ir.events import Happened, Record
from launcher.ir.live import FleetStatus, ProcessStatus, UnavailableError
from launcher.ir.page import Request, StreamDocument
from launcher.runtime.page.app import page_routes, static_file, static_names
from launcher.runtime.page.stream import stream

MOST_BYTES = 150_000
STREAM = jsonschema.Draft202012Validator(json_schema("launch.stream/v1"))


class Told:
    """`Pages` whose fleet the test changes."""

    def __init__(self) -> None:
        """One server that is ready."""
        self.log = EventLog(None)
        self.processes = {"a": ProcessStatus(name="a", kind="server", state="ready", port=1)}
        self.now: list[Request] = []
        self.past: list[Request] = []
        self.acts: list[tuple[str, ...]] = []
        self.listening = 0

    def status(self) -> FleetStatus:
        """The processes as they are set."""
        processes = tuple(self.processes.values())
        return FleetStatus(deployment="d", input_digest="x", runtime_pid=1, front=None, ready=True, processes=processes)

    def events(self, after: int) -> tuple[Record, ...]:
        """Of the log."""
        return self.log.after(after)

    def listen(self, listener: Callable[[Record], None]) -> Callable[[], None]:
        """Counted."""
        self.listening += 1
        end = self.log.listen(listener)

        def stop() -> None:
            self.listening -= 1
            end()

        return stop

    def running(self) -> list[Request]:
        """As set."""
        return list(self.now)

    def ended(self, after: int) -> list[Request]:
        """As set."""
        return [request for request in self.past if request.number > after]

    def cancel(self, request_id: str) -> bool:
        """Noted; one is known."""
        self.acts.append(("cancel", request_id))
        return request_id == "known"

    def fleet(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    async def loads(self) -> dict[str, Any]:
        """None."""
        return {"gpus": [], "ram": {"free_bytes": 1}, "nodes": []}

    async def start(self, name: str) -> None:
        """Noted; refused where there is no room."""
        self.acts.append(("start", name))
        raise UnavailableError("no_room", "others are busy")

    def speeds(self) -> dict[str, list[tuple[int, float]]]:
        """One minute."""
        return {"a": [(60, 31.5)]}

    async def explain(self, code: str) -> dict[str, Any]:
        """Noted; one is known."""
        self.acts.append(("explain", code))
        return {"codes": [{"code": code}]} if code == "plan/known" else {"error": "", "findings": []}

    async def stop(self, names: tuple[str, ...]) -> None:
        """Noted."""
        self.acts.append(("stop", *names))

    async def restart(self, name: str) -> dict[str, Any]:
        """Noted."""
        self.acts.append(("restart", name))
        return {}

    async def command(self, *words: str) -> dict[str, Any]:
        """Noted."""
        self.acts.append(words)
        return {"fleets": []}

    async def change_rung(self, name: str, *, down: bool) -> None:
        """Noted."""
        self.acts.append(("degrade" if down else "restore", name))

    def pool(self, verb: str, name: str) -> None:
        """Noted; one is known."""
        self.acts.append((verb, name))
        if name != "a":
            raise KeyError(f"no {name}")

    async def projects(self) -> list[Any]:
        """One."""
        return [{"owner": "", "name": "site"}]

    async def project(self, owner: str, name: str) -> list[dict[str, Any]]:
        """One, of that project."""
        return [{"id": f"{owner}-{name}"}]

    async def generation(self, generation_id: str) -> dict[str, Any] | None:
        """One is known."""
        return {"generation": None, "notes": []} if generation_id == "g" else None

    def make_link(self) -> str:
        """A fixed one."""
        return "word"

    def enter(self, *, token: str, key: str) -> str | None:
        """That word, or a key."""
        return "launch=s; HttpOnly; SameSite=Strict" if token == "word" or key == "boss" else None

    def leave(self, cookies: str) -> None:
        """Noted."""
        self.acts.append(("leave", cookies))


class Reader:
    """Reads a stream's events one by one."""

    def __init__(self, host: Told, after: int | None = None) -> None:
        """From the beginning, or after an event."""
        self._stream: AsyncIterator[bytes] = stream(host, after)
        self._parts: list[tuple[str, Any, int]] = []

    async def next(self, kind: str) -> tuple[Any, int]:
        """The next event of a kind, and its number; others are skipped."""
        async with asyncio.timeout(10):
            while True:
                while self._parts:
                    found, value, number = self._parts.pop(0)
                    if found == kind:
                        return value, number
                for text in (await anext(self._stream)).decode().split("\n\n"):
                    fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
                    if "data" in fields:
                        number = int(fields.get("id", 0))
                        said = {"schema": "launch.stream/v1", fields["event"]: json.loads(fields["data"])}
                        STREAM.validate(said)  # every message of every test
                        typed = msgspec.json.encode(msgspec.convert(said, StreamDocument))
                        assert json.loads(typed)[fields["event"]] == said[fields["event"]]  # no key is left out
                        self._parts.append((fields["event"], json.loads(fields["data"]), number))

    async def close(self) -> None:
        """Go away."""
        await self._stream.aclose()  # type: ignore[attr-defined]


def some(message: str) -> Happened:
    """An event."""
    return Happened(kind="ready", name="a", message=message)


def request(number: int, request_id: str = "r") -> Request:
    """A request."""
    return Request(
        number=number, id=request_id, at=1.0, client="c", path="/p", asked="a", server="a", state="done", seconds=1.0
    )


async def test_a_reader_that_comes_back_misses_nothing() -> None:
    """What happened while it was away comes with the next stream, once; then the state as it is now."""
    host = Told()
    host.log.add(some("one"))
    reader = Reader(host)
    first, number = await reader.next("event")
    assert (first["message"], first["id"]) == ("one", number)
    assert (await reader.next("status"))[0]["processes"][0]["state"] == "ready"
    host.log.add(some("two"))
    assert (await reader.next("event"))[0]["message"] == "two"
    await reader.close()
    assert host.listening == 0
    for message in ("three", "four"):
        host.log.add(some(message))
    again = Reader(host, after=number)
    assert [(await again.next("event"))[0]["message"] for _ in range(3)] == ["two", "three", "four"]
    await again.close()


async def test_a_number_of_another_log_hides_nothing() -> None:
    """A clock that was ahead, or a store that is lost: who comes back with a number beyond ours is told all we have."""
    host = Told()
    host.log.add(some("one"))
    newest = host.log.add(some("two")).id
    for after, told in ((newest + 10**9, ["one", "two"]), (newest - 10**9, ["one", "two"]), (newest, [])):
        reader = Reader(host, after=after)
        assert [(await reader.next("event"))[0]["message"] for _ in told] == told
        await reader.next("status")
        message = f"then {after}"
        host.log.add(some(message))
        assert (await reader.next("event"))[0]["message"] == message
        await reader.close()
        host = Told()
        host.log.add(some("one"))
        newest = host.log.add(some("two")).id


async def test_who_comes_anew_is_told_of_the_fleet_too_where_answers_made_thousands_of_events() -> None:
    """What an orchestration says of its requests pushes nothing else off the page."""
    host = Told()
    host.log.add(some("one"))
    for number in range(3000):
        host.log.add(Happened(kind="block", name="a", message=str(number)))
    reader = Reader(host)
    assert (await reader.next("event"))[0]["message"] == "one"
    await reader.close()


async def test_only_what_changed_is_sent() -> None:
    """A process that changed comes alone; a request comes when it begins and when it ended, each once."""
    host = Told()
    host.processes["b"] = ProcessStatus(name="b", kind="server", state="stopped", port=2)
    reader = Reader(host)
    assert len((await reader.next("status"))[0]["processes"]) == 2
    assert (await reader.next("requests"))[0] == {"now": [], "ended": []}
    host.processes["b"] = msgspec.structs.replace(host.processes["b"], state="starting")
    assert [p["name"] for p in (await reader.next("processes"))[0]] == ["b"]
    host.now = [request(0, "x")]
    assert [r["id"] for r in (await reader.next("requests"))[0]["now"]] == ["x"]
    host.now, host.past = [], [request(1, "x"), request(2, "y")]
    assert [r["id"] for r in (await reader.next("requests"))[0]["ended"]] == ["x", "y"]
    host.past.append(request(3, "z"))
    assert [r["id"] for r in (await reader.next("requests"))[0]["ended"]] == ["z"]
    del host.processes["b"]
    assert [p["name"] for p in (await reader.next("status"))[0]["processes"]] == ["a"]
    await reader.close()


async def test_many_events_are_told_at_once_and_the_fleet_is_looked_at_seldom() -> None:
    """A thousand events come as they happen, in order; the fleet is looked at a few times a second meanwhile."""
    host = Told()
    looks = 0
    status = host.status

    def counted() -> FleetStatus:
        """One more look."""
        nonlocal looks
        looks += 1
        return status()

    host.status = counted  # type: ignore[method-assign]
    reader = Reader(host)
    await reader.next("status")
    began = asyncio.get_running_loop().time()
    for number in range(100):
        for part in range(10):
            host.log.add(some(f"{number}.{part}"))
        assert [(await reader.next("event"))[0]["message"] for _ in range(10)] == [f"{number}.{p}" for p in range(10)]
    passed = asyncio.get_running_loop().time() - began
    assert looks <= 2 + passed / 0.2
    host.processes["a"] = msgspec.structs.replace(host.processes["a"], state="stopped")
    assert (await reader.next("processes"))[0][0]["state"] == "stopped"
    await reader.close()


def client(host: Told) -> TestClient:
    """Asks the page's routes."""
    return TestClient(Starlette(routes=page_routes(host)), follow_redirects=False)


def test_acts_and_refusals() -> None:
    """Each act reaches the fleet once; what is no server, no request, no number or no body is told."""
    host = Told()
    ask = client(host)
    assert ask.post("/v1/launch/servers/a/stop").json() == {"done": "stop", "name": "a"}
    assert ask.post("/v1/launch/servers/a/restart").status_code == 200
    refused = ask.post("/v1/launch/servers/a/start")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_room")
    assert ask.post("/v1/launch/requests/known/cancel").status_code == 200
    assert ask.post("/v1/launch/servers/a/degrade").json() == {"done": "degrade", "name": "a"}
    assert ask.post("/v1/launch/servers/a/restore").status_code == 200
    assert ask.post("/v1/launch/pool/a/pin").json() == {"done": "pin", "name": "a"}
    assert ask.get("/v1/launch/projects").json() == {"projects": [{"owner": "", "name": "site"}]}
    assert ask.get("/v1/launch/projects?name=site&owner=me").json() == {"generations": [{"id": "me-site"}]}
    assert ask.get("/v1/launch/generations/g").status_code == 200
    assert ask.get("/v1/launch/speeds").json() == {"speeds": {"a": [[60, 31.5]]}}
    assert ask.get("/v1/launch/plan").json() == {"fleets": []}
    assert ask.post("/v1/launch/apply").status_code == 200
    assert host.acts == [
        ("stop", "a"),
        ("restart", "a"),
        ("start", "a"),
        ("cancel", "known"),
        ("degrade", "a"),
        ("restore", "a"),
        ("pin", "a"),
        ("reload", "--dry-run", "--json"),
        ("reload", "--json"),
    ]
    assert ask.get("/v1/launch/explanations/plan/known").json() == {"codes": [{"code": "plan/known"}]}
    assert host.acts.pop() == ("explain", "plan/known")
    for status, answer in (
        (404, ask.post("/v1/launch/servers/nope/stop")),
        (404, ask.post("/v1/launch/servers/a/upgrade")),
        (404, ask.post("/v1/launch/requests/nope/cancel")),
        (404, ask.post("/v1/launch/pool/a/eat")),
        (404, ask.post("/v1/launch/pool/nope/pin")),
        (404, ask.get("/v1/launch/generations/nope")),
        (404, ask.get("/v1/launch/explanations/--help")),
        (404, ask.get("/v1/launch/explanations/Plan/known")),
        (400, ask.get("/v1/launch/events", headers={"last-event-id": "-1"})),
        (400, ask.get("/v1/launch/events?after=" + "9" * 30)),
        (403, ask.post("/ui/enter", json={"token": "other"})),
        (403, ask.post("/ui/enter", content=b"[")),
        (404, ask.get("/ui/app.py")),
        (404, ask.get("/ui/nothing.js")),
    ):
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"]
    assert len(host.acts) == 11


def test_events_as_json_obey_their_schema() -> None:
    """The same events without a stream; each is one of the published document."""
    host = Told()
    host.log.add(some("one"))
    found = client(host).get("/v1/launch/events").json()["events"]
    document = {"schema": "launch.events/v1", "deployment": "d", "events": found}
    jsonschema.validate(document, json_schema("launch.events/v1"))
    assert client(host).get(f"/v1/launch/events?after={found[0]['id']}").json() == {"events": []}


def test_entering_sets_a_cookie_that_scripts_and_other_sites_have_not() -> None:
    """By the word of a link, or by a key."""
    for body in ({"token": "word"}, {"key": "boss"}):
        answer = client(Told()).post("/ui/enter", json=body)
        assert answer.status_code == 200
        assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["set-cookie"].split("; "))


@pytest.mark.parametrize("name", sorted(static_names()))
def test_files_of_the_page(name: str) -> None:
    """Served with a policy that allows no script but the page's own files; none asks anybody else for anything."""
    answer = client(Told()).get(f"/ui/{name}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    text = answer.text
    outside = [url for url in re.findall(r"https?://[\w.]+", text) if not url.startswith("http://www.w3.org")]
    assert outside == []
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert markup not in text
    for kept in ("Storage", "indexedDB", "document.cookie", "caches."):  # nothing that anybody could have written into
        assert kept not in text
    if name.endswith(".html"):
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", text)


def test_the_page_is_small() -> None:
    """All of it, as it is sent."""
    assert client(Told()).get("/ui").headers["location"] == "/ui/"
    assert client(Told()).get("/ui/").text == (static_file("index.html") or b"").decode()
    assert sum(len(static_file(name) or b"") for name in static_names()) < MOST_BYTES
