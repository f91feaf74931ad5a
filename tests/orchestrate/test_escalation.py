"""Escalation: what the validator refuses again and again, or its server refuses, goes to a stronger worker."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from launcher.route import Front
from tests.orchestrate.scripted import PASS, Fleet, fail, scripted_fleet
from tests.route.fleet import OK, FakeFleet, RawClient, answering, front_unit, post, running, table, target

pytestmark = pytest.mark.timeout(60)
CHAIN: dict[str, Any] = {"escalation": {"coder": "talker"}, "max_retries": 2, "max_escalations": 2}
CODE = {"X-Task-Type": "code"}


@contextlib.asynccontextmanager
async def escalating(tmp_path: Path, **roles: Any) -> AsyncIterator[Fleet]:
    """The scripted fleet, where the talker takes over from the coder."""
    async with scripted_fleet(tmp_path, **roles, **CHAIN) as fleet:
        yield fleet


async def test_a_block_refused_twice_is_written_by_the_next(tmp_path: Path) -> None:
    """It is told what was refused, goes on to the end, and head, journal, metrics and events say so."""
    validator, coder = [PASS, fail(), fail("worse"), PASS], ["one", "bad", "worse", "[DONE]"]
    async with escalating(tmp_path, validator=validator, coder=coder, talker=["two", "[DONE]"]) as fleet:
        answer = await fleet.chat(headers=CODE)
        metrics = (await fleet.get("/metrics")).text
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "one\n\ntwo")
    assert answer.headers["x-launch-escalation"] == "from=coder; to=talker; why=validation"
    assert (answer.headers["x-launch-server"], answer.json()["model"]) == ("talker", "talker")
    assert (len(fleet.coder.chats), len(fleet.talker.chats)) == (3, 2)
    assert "worse" in json.dumps(fleet.talker.chats[0]["messages"])
    assert "You talk." in json.dumps(fleet.talker.chats[0]["messages"])
    assert [row[0] for row in fleet.rows("SELECT server FROM block ORDER BY seq")] == ["coder", "talker"]
    assert fleet.journal == ["decision", "begin", "commit", "escalation", "commit", "complete"]
    assert 'launch_escalations_total{from="coder",to="talker",why="validation"} 1' in metrics
    told = [event for event in fleet.told if event.details.get("escalated") and event.details.get("from")]
    assert [(event.name, event.details["block"]) for event in told] == [("talker", 2)]


async def test_a_stream_goes_on_with_the_next(tmp_path: Path) -> None:
    """Its header is out with the first block."""
    validator, coder = [PASS, fail(), fail(), PASS], ["one", "bad", "bad again"]
    async with escalating(tmp_path, validator=validator, coder=coder, talker=["two", "[DONE]"]) as fleet:
        answer = await fleet.chat(headers=CODE, stream=True)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert (text, answer.headers["x-launch-server"]) == ("one\n\ntwo", "coder")
    assert {e["model"] for e in events} == {"coder"}
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("coder", "text", "sizes"), [([500], "Write it.", {}), (["never"], "word " * 600, {"coder": 300})]
)
async def test_what_a_worker_cannot_take_goes_to_the_next(
    tmp_path: Path, coder: list[Any], text: str, sizes: dict[str, int]
) -> None:
    """Its server fails in it whenever it is asked; it does not fit its slot."""
    async with escalating(tmp_path, coder=coder, talker=["two", "[DONE]"], sizes=sizes) as fleet:
        answer = await fleet.chat(text, headers=CODE)
    assert (answer.status_code, fleet.blocks) == (200, ["two"])
    assert answer.headers["x-launch-escalation"] == "from=coder; to=talker; why=refused"


async def test_a_request_that_is_wrong_bothers_nobody_else(tmp_path: Path) -> None:
    """400 for another reason than its length."""
    async with escalating(tmp_path, coder=[400]) as fleet:
        answer = await fleet.chat(headers=CODE)
    assert (answer.status_code, fleet.talker.chats) == (400, [])


async def test_the_last_one_gives_up(tmp_path: Path) -> None:
    """Nobody is left; each had its own number of tries."""
    async with escalating(tmp_path, validator=[fail()], coder=["bad"], talker=["bad, too"]) as fleet:
        answer = await fleet.chat(headers=CODE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_exhausted")
    assert (len(fleet.coder.chats), len(fleet.talker.chats)) == (2, 4)


async def test_a_key_that_may_not_ask_the_next(tmp_path: Path) -> None:
    """It is not asked."""
    keys = tmp_path / "keys"
    keys.write_text("coders-key models=coder\n")
    keys.chmod(0o600)
    front = front_unit(api_key_file=str(keys))
    async with escalating(tmp_path, validator=[fail()], coder=["bad"], front=front) as fleet:
        answer = await fleet.chat(headers={**CODE, "Authorization": "Bearer coders-key"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_exhausted")
    assert (len(fleet.coder.chats), len(fleet.talker.chats)) == (4, 0)


def test_the_chain_of_a_name() -> None:
    """By the name that was asked for, else by any other of its server; never in a circle, never too far."""
    units = (target("a", 1, roles=("door",)), target("b", 2, roles=("coder",)), target("c", 3), target("d", 4))
    chain = {"door": "b", "coder": "c", "c": "d", "d": "a"}
    found = table(*units, escalation=chain, max_escalations=9)
    assert found.stronger("door") == found.stronger("a") == ("b", "c", "d")
    assert found.stronger("c") == ("d", "a", "b")
    assert table(*units, escalation=chain, max_escalations=2).stronger("a") == ("b", "c")
    assert table(*units, escalation=chain, max_escalations=0).stronger("a") == ()


def refusing(status: int, kind: str) -> bytes:
    """An error as a llama-server writes it."""
    body = json.dumps({"error": {"code": status, "message": "no", "type": kind}}).encode()
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@pytest.mark.parametrize(
    ("status", "kind", "escalates"),
    [
        (400, "exceed_context_size_error", True),
        (500, "server_error", True),
        (501, "not_supported_error", True),
        (400, "invalid_request_error", False),
        (503, "unavailable_error", False),
    ],
)
async def test_a_plain_request_that_its_server_refuses(tmp_path: Path, status: int, kind: str, escalates: bool) -> None:
    """What another could do goes along the chain; what is wrong with the request, or not ready yet, does not."""
    journal = tmp_path / "journal"
    async with answering(refusing(status, kind)) as small, answering(refusing(500, "x")) as mid, answering(OK) as large:
        units = (target("small", small.port), target("mid", mid.port), target("large", large.port))
        chain = {"escalation": {"small": "mid", "mid": "large"}, "max_escalations": 2}
        front = Front(table(*units, front=front_unit(journal_file=str(journal)), **chain), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            got = await client.ask(post({"model": "small", "messages": []}, "/v1/chat/completions"))
            again = await client.ask(post({"model": "small", "input": "x"}, "/v1/embeddings"))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert (again.status, "x-launch-escalation" in again.headers) == (status, False)
    if not escalates:
        assert (got.status, len(mid.requests), got.headers["x-launch-server"]) == (status, 0, "small")
        return
    assert (got.status, got.headers["x-launch-server"]) == (200, "large")
    assert large.requests[0].body == b'{"model": "small", "messages": []}'
    assert [(line["server"], line["status"]) for line in lines[:3]] == [("small", status), ("mid", 500), ("large", 200)]
    assert lines[2]["decision"] == "escalation=small>mid; why=refused; escalation=mid>large; why=refused"
    assert front.escalations == {("small", "mid", "refused"): 1, ("mid", "large", "refused"): 1}


async def test_no_further_than_may_be_and_to_nobody_who_is_down() -> None:
    """One step where one is allowed; the refusal itself where the next cannot be asked."""
    async with answering(refusing(500, "a")) as small, answering(refusing(501, "b")) as mid, answering(OK) as large:
        units = (target("small", small.port), target("mid", mid.port), target("large", large.port))
        chain = {"escalation": {"small": "mid", "mid": "large"}, "max_escalations": 1}
        fleet = FakeFleet()
        async with running(Front(table(*units, **chain), fleet)) as port, RawClient(port) as client:
            one = await client.ask(post({"model": "small", "prompt": "x"}, "/v1/completions"))
            fleet.states["mid"] = "failed"
            none = await client.ask(post({"model": "small", "prompt": "x"}, "/v1/completions"))
    assert (one.status, one.headers["x-launch-server"]) == (501, "mid")
    assert (none.status, none.headers["x-launch-server"]) == (500, "small")
