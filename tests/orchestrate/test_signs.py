"""Signs of life of a validated stream: comments while a block is written or judged, one writer at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.orchestrate.scripted import PASS, Fleet, fail, scripted_fleet
from tests.route.fleet import front_unit, until

pytestmark = pytest.mark.timeout(60)
SOON = front_unit(ping_after_s=0.02)
CODE = {"X-Validation-Policy": "block_by_block"}
BODY = {"model": "coder", "messages": [{"role": "user", "content": "x"}], "stream": True}


class Held:
    """An answer that comes when the test says so."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.go = asyncio.Event()

    async def __call__(self, _: Any) -> str:
        """Wait, answer."""
        await self.go.wait()
        return self.text


async def stream(fleet: Fleet, hear: Callable[[str], object], **fields: Any) -> httpx.Response:
    """Ask for a stream, whose lines are heard as they come."""
    url = f"{fleet.url}/v1/chat/completions"
    async with (
        httpx.AsyncClient(timeout=20) as client,
        client.stream("POST", url, json=BODY | fields, headers=CODE) as response,
    ):
        async for line in response.aiter_lines():
            hear(line)
    return response


async def test_a_block_that_is_long_in_coming_is_announced(tmp_path: Path) -> None:
    """Comments say what is done, before the first block, while it is judged, and between two; then the answer."""
    writing, judging, second = Held("one"), Held(PASS), Held("two")
    coder, validator = [writing, second, "[DONE]"], [judging, PASS]
    async with scripted_fleet(tmp_path, coder=coder, validator=validator, front=SOON) as fleet:
        lines: list[str] = []
        asking = asyncio.create_task(stream(fleet, lines.append))
        for held, ping in (
            (writing, ": ping writing block=1 server=coder"),
            (judging, ": ping judging block=1 server=coder"),
            (second, ": ping writing block=2 server=coder"),
        ):
            await until(lambda ping=ping: lines.count(ping) > 1)  # type: ignore[misc]
            held.go.set()
        response = await asking
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "one\n\ntwo"
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert response.headers["x-launch-server"] == "coder"


async def test_what_fails_after_a_sign_is_an_event(tmp_path: Path) -> None:
    """The header is out: giving up is said in the stream, once, and nothing follows it."""
    writing = Held("bad")
    async with scripted_fleet(tmp_path, coder=[writing], validator=[fail()], front=SOON) as fleet:
        lines: list[str] = []
        asking = asyncio.create_task(stream(fleet, lines.append))
        await until(lambda: bool(lines))
        writing.go.set()
        response = await asking
    said = [line for line in lines if line and not line.startswith(":")]
    assert (response.status_code, len(said)) == (200, 1)
    assert json.loads(said[0].removeprefix("data: "))["error"]["code"] == "validation_exhausted"


async def test_who_leaves_while_signs_come_is_worked_for_no_more(tmp_path: Path) -> None:
    """Its worker's request is dropped."""
    writing = Held("one")
    async with scripted_fleet(tmp_path, coder=[writing], front=SOON) as fleet:
        lines: list[str] = []
        asking = asyncio.create_task(stream(fleet, lines.append))
        await until(lambda: bool(lines))
        asking.cancel()
        await until(lambda: fleet.coder.dropped == 1)
        await until(lambda: fleet.rows("SELECT status FROM generation") == [("cancelled",)])


async def test_a_whole_answer_has_no_signs(tmp_path: Path) -> None:
    """Nothing comes before its head."""
    async with scripted_fleet(tmp_path, coder=["one", "[DONE]"], front=SOON) as fleet:
        answer = await fleet.chat(model="coder", headers=CODE)
    assert answer.json()["choices"][0]["message"]["content"] == "one"
