"""Generate, validate, commit: every branch, with a scripted worker and validator, by what is on disk afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.orchestrate import FILE_NAME, orchestrator
from tests.orchestrate.scripted import DIE, PASS, Fleet, fail, scripted_fleet
from tests.route.fleet import until

BLOCKS = {"X-Validation-Policy": "block_by_block"}
FIVE = ("one", "two", "three", "four", "five", "[DONE]")


async def never(_: Any) -> str:
    """An answer that does not come."""
    await asyncio.sleep(3600)
    return ""


async def ask(fleet: Fleet, **fields: Any) -> httpx.Response:
    """A request for five validated blocks of `coder`."""
    response: httpx.Response = await fleet.chat(model="coder", headers=BLOCKS, **fields)
    return response


def content(response: httpx.Response) -> str:
    """The text of a whole answer."""
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def test_all_pass(tmp_path: Path) -> None:
    """Five blocks, five verdicts, five commits, in order; the answer is their text, the end is `stop`."""
    async with scripted_fleet(tmp_path, coder=FIVE) as fleet:
        response = await ask(fleet)
        assert content(response) == "one\n\ntwo\n\nthree\n\nfour\n\nfive"
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        assert fleet.blocks == list(FIVE[:5])
        assert fleet.verdicts == [(seq, 1, "pass", 1) for seq in range(5)]
        assert fleet.journal == ["begin", *["commit"] * 5, "complete"]
        assert fleet.rows("SELECT status FROM generation") == [("complete",)]
        assert len(fleet.validator.chats) == 5
        assert len(fleet.coder.chats) == 6


async def test_a_failed_block_is_corrected(tmp_path: Path) -> None:
    """Fail, then corrected: the worker is told why, the correction is committed once with both verdicts."""
    async with scripted_fleet(tmp_path, coder=("bad", "good", "[DONE]"), validator=(fail("no type"), PASS)) as fleet:
        assert content(await ask(fleet)) == "good"
        assert fleet.blocks == ["good"]
        assert fleet.verdicts == [(0, 1, "fail", 1), (0, 2, "pass", 1)]
        assert fleet.journal == ["begin", "commit", "complete"]
        told = fleet.coder.chats[1]["messages"]
        assert told[-2] == {"role": "assistant", "content": "bad"}
        assert "no type" in told[-1]["content"]
        assert "mend it" in told[-1]["content"]
        assert fleet.rows("SELECT text FROM scratchpad") == [("[FAIL] block 1: no type\nmend it",)]
        kinds = ["verdict", "correction", "verdict", "block", "generation"]
        assert [event.kind for event in fleet.told] == kinds
        assert [event.details.get("verdict") for event in fleet.told if event.kind == "verdict"] == ["fail", "pass"]
        assert {event.details["generation"] for event in fleet.told} == {fleet.rows("SELECT id FROM generation")[0][0]}
        assert fleet.told[-1].details | {"generation": ""} == {
            "generation": "",
            "status": "complete",
            "blocks": 1,
            "code": "",
        }
        said = str(fleet.told)
        assert not any(text in said for text in ("no type", "mend it", "bad", "good"))  # texts are in the memory alone


@pytest.mark.parametrize(
    ("verdicts", "status", "code", "kinds"),
    [
        ((PASS, fail()), 422, "validation_exhausted", ["fail"] * 4),
        ((PASS, "[FAIL: list[int] expected] use a list"), 422, "validation_exhausted", ["fail"] * 4),
        ((PASS, "looks good to me"), 502, "validator_malformed", ["malformed"] * 4),
        ((PASS, '{"status": "PASS"'), 502, "validator_malformed", ["malformed"] * 4),
        ((PASS, "[PASS] [FAIL: wrong]"), 502, "validator_contradictory", ["contradictory"] * 4),
        (
            (PASS, '{"status": "PASS", "reason": "", "correction": "change it"}'),
            502,
            "validator_contradictory",
            ["contradictory"] * 4,
        ),
        ((PASS, 500), 503, "validator_unavailable", ["unavailable"] * 4),
        ((PASS, DIE), 503, "validator_unavailable", ["unavailable"] * 4),
        ((PASS, fail(), "nonsense", DIE, fail()), 422, "validation_exhausted", None),
    ],
    ids=["fail", "text", "prose", "cut", "both-texts", "pass-with-correction", "error", "dead", "mixed"],
)
async def test_giving_up_keeps_what_was_committed(
    tmp_path: Path, verdicts: tuple[Any, ...], status: int, code: str, kinds: list[str] | None
) -> None:
    """After one committed block the second is refused four times: a typed error, one block, all verdicts kept."""

    async def other(body: dict[str, Any]) -> str:
        """Each answer is another block."""
        return f"block {len(fleet.coder.chats)}"

    async with scripted_fleet(tmp_path, coder=(other,), validator=verdicts) as fleet:
        response = await ask(fleet)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["committed"]) == (status, code, ["block 1"])
        assert fleet.blocks == ["block 1"]
        found = fleet.verdicts
        assert found[0] == (0, 1, "pass", 1)
        assert [(seq, attempt, committed) for seq, attempt, _, committed in found[1:]] == [
            (1, attempt, 0) for attempt in (1, 2, 3, 4)
        ]
        assert [kind for _, _, kind, _ in found[1:]] == (kinds or ["fail", "malformed", "unavailable", "fail"])
        assert fleet.journal == ["begin", "commit", "failed"]
        assert fleet.rows("SELECT status, code FROM generation") == [("failed", code)]
        report = (await fleet.get(f"/v1/generations/{error['generation']}")).json()
        assert (report["status"], report["code"], report["blocks"]) == ("failed", code, ["block 1"])


async def test_an_unreadable_verdict_is_asked_for_again(tmp_path: Path) -> None:
    """Malformed, contradictory and dead verdicts are no PASS: the same block is judged again, not written again."""
    verdicts = ("perhaps", "[PASS] but [FAIL: no]", DIE, PASS)
    async with scripted_fleet(tmp_path, coder=("one", "[DONE]"), validator=verdicts) as fleet:
        assert content(await ask(fleet)) == "one"
        kinds = [kind for _, _, kind, _ in fleet.verdicts]
        assert kinds == ["malformed", "contradictory", "unavailable", "pass"]
        assert len(fleet.coder.chats) == 2


async def test_a_slow_validator(tmp_path: Path) -> None:
    """No verdict in time is no PASS; the validator's work is stopped each time, and the end is a 504."""

    def quick(orchestration: dict[str, Any]) -> None:
        """Little patience."""
        orchestration["validation"] |= {"timeout_s": 0.05, "max_corrections": 1}

    async with scripted_fleet(tmp_path, coder=("one",), validator=(never,), change=quick) as fleet:
        response = await ask(fleet)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "validator_timeout")
        assert response.json()["error"]["committed"] == []
        assert [kind for _, _, kind, _ in fleet.verdicts] == ["timeout", "timeout"]
        await until(lambda: fleet.validator.dropped == 2)


async def test_a_worker_that_dies_writes_again(tmp_path: Path) -> None:
    """The worker dies within a block twice: the block is written once more, nothing is lost or doubled."""
    async with scripted_fleet(tmp_path, coder=("one", DIE, 500, "two", "[DONE]")) as fleet:
        assert content(await ask(fleet)) == "one\n\ntwo"
        assert fleet.blocks == ["one", "two"]


async def test_a_worker_that_stays_dead(tmp_path: Path) -> None:
    """Three failures at one block end the answer, with what was committed."""
    async with scripted_fleet(tmp_path, coder=("one", 500)) as fleet:
        response = await ask(fleet)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "server_error")
        assert response.json()["error"]["committed"] == ["one"]
        assert len(fleet.coder.chats) == 4
        assert fleet.journal == ["begin", "commit", "failed"]


async def test_a_worker_that_says_nothing(tmp_path: Path) -> None:
    """An empty first block is no answer: a typed error."""
    async with scripted_fleet(tmp_path, coder=("  ",)) as fleet:
        response = await ask(fleet)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_empty")
        assert fleet.blocks == []


async def test_a_worker_that_repeats_itself_has_finished(tmp_path: Path) -> None:
    """The same block again is nothing new."""
    async with scripted_fleet(tmp_path, coder=("one", "two")) as fleet:
        assert content(await ask(fleet)) == "one\n\ntwo"
        assert len(fleet.validator.chats) == 2


async def test_done_at_the_end_of_a_block(tmp_path: Path) -> None:
    """`[DONE]` after a block ends the answer with that block."""
    async with scripted_fleet(tmp_path, coder=("one", "two\n[done]", "three")) as fleet:
        assert content(await ask(fleet)) == "one\n\ntwo"
        assert len(fleet.coder.chats) == 2


async def test_words_of_our_prompts_never_reach_an_answer(tmp_path: Path) -> None:
    """What a small model says after us is not judged, kept or delivered, and ends the answer where it says so."""
    said = "Paris.\n\nHere are the next two blocks:\n\nWhen nothing is left to write, answer [DONE]."
    async with scripted_fleet(tmp_path, coder=(said, "never asked")) as fleet:
        assert content(await ask(fleet)) == "Paris."
        assert (fleet.blocks, len(fleet.coder.chats)) == (["Paris."], 1)
        assert "next two" not in json.dumps(fleet.validator.chats)


async def test_max_blocks_and_max_tokens_bound_the_answer(tmp_path: Path) -> None:
    """The fleet's number of blocks and the client's number of tokens both end an answer with `length`."""

    async def endless(body: dict[str, Any]) -> str:
        """Four words a block, for ever."""
        return f"a b c d{len(fleet.coder.chats)}"

    async with scripted_fleet(tmp_path, coder=(endless,)) as fleet:
        response = await ask(fleet)
        assert (len(fleet.blocks), response.json()["choices"][0]["finish_reason"]) == (8, "length")
        response = await ask(fleet, max_tokens=6)
        assert (len(fleet.blocks), response.json()["choices"][0]["finish_reason"]) == (10, "length")
        assert content(response).split()[-2:] == ["a", "b"]


async def test_final_validates_the_whole_answer_once(tmp_path: Path) -> None:
    """Policy `final`: one block, corrected as a whole, no talk of blocks to the worker."""
    async with scripted_fleet(tmp_path, coder=("bad essay", "good essay"), validator=(fail(), PASS)) as fleet:
        response = await fleet.chat(model="coder", headers={"X-Validation-Policy": "final"})
        assert (content(response), response.json()["choices"][0]["finish_reason"]) == ("good essay", "stop")
        assert fleet.blocks == ["good essay"]
        assert "[DONE]" not in json.dumps(fleet.coder.chats)


async def test_none_passes_through(tmp_path: Path) -> None:
    """Policy `none`: nobody judges, nothing is committed, the worker's own answer comes through."""
    async with scripted_fleet(tmp_path, coder=("plain",)) as fleet:
        response = await fleet.chat(model="coder", headers={"X-Validation-Policy": "none"})
        assert content(response) == "plain"
        assert (fleet.blocks, fleet.validator.chats) == ([], [])


async def test_the_policy_of_a_model(tmp_path: Path) -> None:
    """`model_policies` validates requests that name the server, a request may say otherwise, others are untouched."""

    def strict(orchestration: dict[str, Any]) -> None:
        """Everything from `coder` is judged."""
        orchestration["model_policies"] = {"coder": "final"}

    async with scripted_fleet(tmp_path, coder=("text",), change=strict) as fleet:
        assert (await fleet.chat(model="coder")).headers["x-launch-decision"] == (
            "model=coder; policy=final; confidence=1; source=named"
        )
        assert fleet.blocks == ["text"]
        await fleet.chat(model="coder", headers={"X-Validation-Policy": "none"})
        assert "x-launch-decision" not in (await fleet.chat(model="talker")).headers
        async with httpx.AsyncClient() as client:
            files = {"model": (None, "coder"), "file": ("a.wav", b"\xff\x00")}
            other = await client.post(f"{fleet.url}/v1/audio/transcriptions", files=files)
            assert (other.status_code, other.headers["x-launch-server"]) == (200, "coder")
        assert fleet.blocks == ["text"]


async def test_blocks_stream_as_they_are_committed(tmp_path: Path) -> None:
    """The first block is with the client, and on disk, while the second is still being written."""
    go_on = asyncio.Event()

    async def second(_: Any) -> str:
        """Wait for the test."""
        await go_on.wait()
        return "two"

    async with scripted_fleet(tmp_path, coder=("one", second, "[DONE]")) as fleet, httpx.AsyncClient() as client:
        body = {"model": "coder", "messages": [{"role": "user", "content": "x"}], "stream": True}
        body["stream_options"] = {"include_usage": True}
        url = f"{fleet.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body, headers=BLOCKS) as response:
            lines = response.aiter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": "one"}
            assert fleet.blocks == ["one"]
            go_on.set()
            rest = [line.removeprefix("data: ") async for line in lines if line]
        assert response.headers["x-generation-id"]
        assert json.loads(rest[0])["choices"][0]["delta"] == {"content": "\n\ntwo"}
        assert json.loads(rest[1])["choices"][0]["finish_reason"] == "stop"
        assert json.loads(rest[2])["usage"]["completion_tokens"] == 3
        assert rest[3:] == ["[DONE]"]


async def test_a_stream_that_gives_up_ends_with_an_error_event(tmp_path: Path) -> None:
    """Not with [DONE]: the error has its code and what was committed."""
    async with scripted_fleet(tmp_path, coder=("one", "two"), validator=(PASS, fail())) as fleet:
        response = await ask(fleet, stream=True)
        *_, last = [line for line in response.text.splitlines() if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], error["committed"]) == ("validation_exhausted", ["one"])
        assert "[DONE]" not in response.text


@pytest.mark.parametrize("step", ["worker", "validator"])
async def test_a_client_that_leaves_stops_the_work(tmp_path: Path, step: str) -> None:
    """Whoever is being asked sees its client leave; what was committed stays, nobody is asked again."""
    scripts = {"worker": {"coder": ("one", never)}, "validator": {"coder": FIVE, "validator": (PASS, never)}}[step]
    async with scripted_fleet(tmp_path, **scripts) as fleet:  # type: ignore[arg-type]
        asking = asyncio.create_task(ask(fleet))
        role = fleet.coder if step == "worker" else fleet.validator
        await until(lambda: role.open == 1)
        asking.cancel()
        await until(lambda: role.dropped == 1)
        await until(lambda: fleet.rows("SELECT status FROM generation") == [("cancelled",)])
        assert fleet.blocks == ["one"]
        assert fleet.journal == ["begin", "commit", "cancelled"]
        asked = (len(fleet.coder.chats), len(fleet.validator.chats))
        await asyncio.sleep(0.05)
        assert (len(fleet.coder.chats), len(fleet.validator.chats)) == asked


async def test_the_end_of_the_front_is_told_and_resumed(tmp_path: Path) -> None:
    """A drain that cuts a stream: an error event, `interrupted` on disk; the same request goes on after the restart."""
    headers = BLOCKS | {"X-Generation-Id": "mine"}
    async with scripted_fleet(tmp_path, coder=("one", never)) as fleet:
        asking = asyncio.create_task(fleet.chat(model="coder", headers=headers, stream=True))
        await until(lambda: fleet.coder.open == 1)
    response = await asking
    error = json.loads([line for line in response.text.splitlines() if line][-1].removeprefix("data: "))["error"]
    assert (error["code"], error["committed"], error["generation"]) == ("front_stopping", ["one"], "mine")
    async with scripted_fleet(tmp_path, coder=("two", "[DONE]")) as fleet:
        assert (await fleet.get("/v1/generations/mine")).json()["status"] == "interrupted"
        assert content(await fleet.chat(model="coder", headers=headers)) == "one\n\ntwo"
        assert fleet.journal == ["begin", "commit", "interrupted", "resume", "commit", "complete"]
        again = await fleet.chat(model="coder", headers=headers)
        assert content(again) == "one\n\ntwo"
        assert (len(fleet.coder.chats), fleet.blocks) == (2, ["one", "two"])


async def test_a_generation_is_resumed_by_its_own_request_only(tmp_path: Path) -> None:
    """Another text under the same id, and the same one while it runs: 409, and nothing happens to it."""
    headers = BLOCKS | {"X-Generation-Id": "mine"}
    async with scripted_fleet(tmp_path, coder=("one", never)) as fleet:
        asking = asyncio.create_task(fleet.chat(model="coder", headers=headers))
        await until(lambda: fleet.coder.open == 1)
        running = await fleet.chat(model="coder", headers=headers)
        other = await fleet.chat("Something else.", model="coder", headers=headers)
        assert [r.status_code for r in (running, other)] == [409, 409]
        assert [r.json()["error"]["code"] for r in (running, other)] == ["generation_running", "generation_mismatch"]
        assert fleet.rows("SELECT status FROM generation") == [("running",)]
        asking.cancel()
        await until(lambda: fleet.coder.dropped == 1)


async def test_the_prompt_fits_the_slot_by_the_servers_own_count(tmp_path: Path) -> None:
    """Blocks of 40 words in a slot of 256 tokens: no prompt exceeds the slot, the request is always whole in it."""

    async def long(_: Any) -> str:
        """Forty words that no other block has."""
        number = len(fleet.coder.chats)
        return " ".join(f"w{number}x{i}" for i in range(40))

    request = "please " * 20
    async with scripted_fleet(tmp_path, coder=(long,)) as fleet:
        table = fleet.front.view.table
        small = {
            name: msgspec.structs.replace(table.targets[name], n_ctx_per_slot=size)
            for name, size in (("coder", 256), ("validator", 512))
        }
        fleet.front.replace_table(msgspec.structs.replace(table, targets={**table.targets, **small}))
        response = await fleet.chat(request, model="coder", headers=BLOCKS)
        assert len(fleet.blocks) == 8, response.text
        for chats, slot in ((fleet.coder.chats, 256), (fleet.validator.chats, 512)):
            for chat in chats:
                prompt = "\n".join(f"{m['role']}: {m['content']}" for m in chat["messages"])
                assert len(prompt.split()) + chat["max_tokens"] <= slot
                assert request.strip() in prompt
        late = json.dumps(fleet.coder.chats[-1])
        assert "w1x0" not in late
        assert "w7x39" in late
        response = await fleet.chat("word " * 300, model="coder", headers=BLOCKS)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": []},
    ],
)
async def test_what_cannot_be_validated_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A policy asked for in vain is a 400, before anybody is asked."""
    async with scripted_fleet(tmp_path) as fleet:
        response = await ask(fleet, **fields)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "policy_unsupported")
        assert fleet.coder.chats == []


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-Validation-Policy": "strict"}, "unknown_policy"),
        ({"X-Validation-Policy": "final", "X-Project": "../etc"}, "invalid_header"),
        ({"X-Validation-Policy": "final", "X-Generation-Id": "a b"}, "invalid_header"),
    ],
)
async def test_bad_headers(tmp_path: Path, headers: dict[str, str], code: str) -> None:
    """Each is a 400 with its code."""
    async with scripted_fleet(tmp_path) as fleet:
        response = await fleet.chat(model="coder", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)


async def test_a_project_remembers(tmp_path: Path) -> None:
    """A later request of the project is shown its blocks; another project and no project are not."""
    async with scripted_fleet(tmp_path, coder=("alpha", "[DONE]", "beta", "[DONE]", "gamma", "[DONE]")) as fleet:
        for project in ("a", "a", "b"):
            await fleet.chat(model="coder", headers=BLOCKS | {"X-Project": project})
        prompts = [json.dumps(chat) for chat in fleet.coder.chats]
        assert "alpha" in prompts[2]
        assert "alpha" not in prompts[4]
        assert fleet.rows("SELECT name FROM project") == [("a",), ("b",)]


def forbid(fleet: Fleet, table: str) -> None:
    """From now on nothing can be written to a table, as on a full disk."""
    with contextlib.closing(sqlite3.connect(fleet.path)) as db:
        db.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE (ABORT, 'disk full'); END")


async def test_a_block_that_cannot_be_saved_is_not_delivered(tmp_path: Path) -> None:
    """A disk that fails ends a validated answer with a typed error; what nobody validates is answered all the same."""
    async with scripted_fleet(tmp_path, coder=("one", "[DONE]")) as fleet:
        forbid(fleet, "block")
        response = await ask(fleet)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["committed"]) == (500, "memory_failed", [])
        assert fleet.journal == ["begin", "failed"]
    other = tmp_path / "other"
    other.mkdir()
    async with scripted_fleet(other, coder=("one",)) as fleet:
        forbid(fleet, "journal")
        assert (await fleet.chat("Refactor.", headers={"X-Validation-Policy": "none"})).status_code == 200
        response = await ask(fleet)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "memory_failed")


async def test_a_memory_that_is_damaged_stops_no_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet starts; what nobody validates is answered, the rest is a typed 503 until the file is gone."""
    monkeypatch.setattr(orchestrator, "_REOPEN_S", 0)
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 100)
    async with scripted_fleet(tmp_path, coder=("one", "one", "[DONE]")) as fleet:
        plain = await fleet.chat("Refactor.", headers={"X-Validation-Policy": "none"})
        assert plain.status_code == 200
        refused = await ask(fleet)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "memory_failed")
        assert "retry-after" in refused.headers
        (tmp_path / FILE_NAME).unlink()
        assert (await ask(fleet)).status_code == 200


async def test_a_whole_answer_that_the_slot_cuts_off_says_so(tmp_path: Path) -> None:
    """Policy `final` without a limit: what the validator's slot holds is written, and a cut is a `length`."""
    async with scripted_fleet(tmp_path, coder=("word " * 5000,)) as fleet:
        response = await fleet.chat(model="coder", headers={"X-Validation-Policy": "final"})
        assert response.json()["choices"][0]["finish_reason"] == "length"
        assert len(content(response).split()) == 2048 - 400 - 256
