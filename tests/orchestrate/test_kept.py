"""What a project keeps beside validated answers: those that nobody judged, and drafts that were refused."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.orchestrate import FILE_NAME, ProjectMemory, list_drafts
from launcher.orchestrate.answer import text_of_answer
from tests.orchestrate.scripted import Fleet, decides, fail, scripted_fleet
from tests.route.fleet import front_unit, until


def everything(orchestration: dict[str, Any]) -> None:
    """Every answer of a project is kept."""
    orchestration["memory"] = {"commits": "projects"}


async def kept(fleet: Fleet, count: int) -> None:
    """Wait until so many blocks are on disk: the answer was complete before."""
    await until(lambda: len(fleet.blocks) == count)


async def test_every_answer_of_a_project_is_kept(tmp_path: Path) -> None:
    """By `auto` or by name, whole or streamed, with its id; not one without a project, of an error, or resent."""
    async with scripted_fleet(
        tmp_path, router=(decides("general", "talker"),), coder=("code", 500), change=everything
    ) as fleet:
        site = {"X-Project": "site"}
        first = await fleet.chat(headers=site)
        await kept(fleet, 1)
        report = (await fleet.get(f"/v1/generations/{first.headers['x-generation-id']}")).json()
        assert (report["status"], report["policy"], report["blocks"]) == ("complete", "none", ["hello"])
        streamed = await fleet.chat(model="coder", headers=site | {"X-Generation-Id": "mine"}, stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        await kept(fleet, 2)
        assert (await fleet.chat(model="coder", headers=site)).status_code == 500
        again = await fleet.chat(model="talker", headers=site | {"X-Generation-Id": "mine"})
        assert again.json()["choices"][0]["message"]["content"] == "hello"
        await fleet.chat(model="talker")
        await fleet.chat()
        shown = await fleet.chat("Refactor.", headers=site)  # what is validated sees what was not
        assert shown.headers["x-launch-server"] == "coder"
        assert fleet.blocks[:2] == ["hello", "code"]
        assert fleet.rows("SELECT count(*) FROM generation WHERE policy = 'none'") == [(2,)]


async def test_by_default_only_what_is_validated_is_kept(tmp_path: Path) -> None:
    """A named model's answer passes through, in a project or not, without headers of ours."""
    async with scripted_fleet(tmp_path) as fleet:
        found = await fleet.chat(model="talker", headers={"X-Project": "not a name!"})
        assert (found.status_code, "x-launch-decision" in found.headers) == (200, False)
        assert fleet.blocks == []


async def test_a_client_that_leaves_an_unvalidated_answer_leaves_nothing(tmp_path: Path) -> None:
    """What nobody got whole is not the project's."""

    async def never(_: Any) -> str:
        """No answer."""
        await asyncio.sleep(3600)
        return ""

    async with scripted_fleet(tmp_path, talker=(never,), change=everything) as fleet:
        async with httpx.AsyncClient() as client:
            body = {"model": "talker", "messages": [{"role": "user", "content": "x"}]}
            asking = asyncio.ensure_future(
                client.post(f"{fleet.url}/v1/chat/completions", json=body, headers={"X-Project": "site"})
            )
            await until(lambda: fleet.talker.open == 1)
            asking.cancel()
        await until(lambda: fleet.talker.dropped == 1)
        assert fleet.blocks == []


async def test_refused_drafts_are_kept_with_their_reasons(tmp_path: Path) -> None:
    """Those that were corrected and those that were given up; a 422 says who decided, and where to read on."""
    async with scripted_fleet(tmp_path, coder=("bad", "worse"), validator=(fail("no tests", "add one"),)) as fleet:
        response = await fleet.chat("Refactor.", headers={"X-Project": "site"})
        assert (response.status_code, response.headers["x-launch-server"]) == (422, "coder")
        assert "model=coder; policy=block_by_block" in response.headers["x-launch-decision"]
        assert response.headers["x-generation-id"] == response.json()["error"]["generation"]
        drafts = list_drafts(fleet.path, "", "site")
        assert [(d.attempt, d.text) for d in drafts] == [(1, "bad"), (2, "worse"), (3, "worse"), (4, "worse")]
        assert {(d.block, d.kind, d.reason, d.correction, d.server, d.model) for d in drafts} == {
            (1, "fail", "no tests", "add one", "validator", "coder")
        }


def test_a_memory_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """Its verdicts have no drafts; nothing else changes."""
    path = tmp_path / FILE_NAME
    ProjectMemory(path).close()
    db = sqlite3.connect(path)
    db.executescript("ALTER TABLE verdict DROP COLUMN draft; PRAGMA user_version = 1;")
    db.close()
    assert list_drafts(path, "", "site") == []
    memory = ProjectMemory(path)
    assert memory._db.execute("SELECT draft FROM verdict").fetchall() == []
    assert memory._db.execute("PRAGMA user_version").fetchone() == (2,)
    memory.close()


def events(*objects: Any) -> bytes:
    """A stream of them."""
    return b"".join(b"event: x\ndata: " + json.dumps(o).encode() + b"\n\n" for o in objects) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"choices": [{"message": {"content": "ab"}}]}).encode(),
        json.dumps({"choices": [{"text": "ab"}]}).encode(),
        json.dumps({"content": "ab", "stop": True}).encode(),
        json.dumps({"type": "message", "content": [{"type": "text", "text": "ab"}]}).encode(),
        json.dumps({"output": [{"type": "message", "content": [{"type": "output_text", "text": "ab"}]}]}).encode(),
        events({"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"delta": {"content": "b"}}]}, {"choices": []}),
        events(*({"type": "content_block_delta", "delta": {"text": text}} for text in "ab")),
        events({"type": "response.output_text.delta", "delta": "ab"}, {"type": "response.completed", "response": {}}),
        events({"content": "a"}, {"content": "b", "stop": True}),
    ],
)  # fmt: skip
def test_the_text_of_an_answer_in_each_apis_words(data: bytes) -> None:
    """Chat, completion, llama.cpp's own, Anthropic's and responses', whole and streamed."""
    assert text_of_answer(data) == "ab"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"choices": [3]}', b'{"choices": [{"message": 3}]}'])
def test_what_says_nothing_is_no_answer(data: bytes) -> None:
    """Neither is a stream that ended with an error."""
    assert text_of_answer(data) == ""
    assert text_of_answer(events({"content": "a"}) + b'data: {"error": {"code": 500}}\n\n') == ""


async def test_a_memory_that_is_removed_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is committed is where its readers look, not in a file without a name."""
    async with scripted_fleet(tmp_path, coder=("one", "[DONE]", "two", "[DONE]")) as fleet:
        assert (await fleet.chat("Refactor.")).status_code == 200
        assert fleet.blocks == ["one"]
        fleet.path.unlink()
        assert (await fleet.chat("Refactor.")).status_code == 200
        assert fleet.blocks == ["two"]
    assert "the project memory was removed" in caplog.text


async def test_a_validated_answer_is_paid_for(tmp_path: Path) -> None:
    """A key's tokens a minute are those of its workers' answers, however they come to the client."""
    keys = tmp_path / "keys"
    keys.write_text("long-enough-key name=a tokens_per_minute=15\n")
    keys.chmod(0o600)
    front = front_unit(api_key_file=str(keys))
    async with scripted_fleet(tmp_path, coder=("one", "[DONE]"), front=front) as fleet:
        key = {"Authorization": "Bearer long-enough-key"}
        assert (await fleet.chat("Refactor.", headers=key)).status_code == 200
        refused = await fleet.chat("Refactor.", headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
