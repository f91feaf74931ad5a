"""The public `openai` client uses all of it without knowing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.late import Late
from tests.orchestrate.scripted import PASS, Fleet, decides, fail, scripted_fleet

openai = Late("openai")

HELLO: Any = [{"role": "user", "content": "Refactor it."}]
GENERAL: Any = [{"role": "user", "content": "Say hello."}]


def client_of(fleet: Fleet) -> openai.AsyncOpenAI:
    """A client as anybody would make it."""
    return openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20)


async def test_auto_and_validated_blocks(tmp_path: Path) -> None:
    """`auto` answers, whole and as a stream of validated blocks; both give the same text."""
    coder = ("one", "two", "[DONE]")
    async with scripted_fleet(tmp_path, router=(decides("general", "talker"),), coder=coder * 2) as fleet:
        async with client_of(fleet) as client:
            plain = await client.chat.completions.create(model="auto", messages=GENERAL)
            assert plain.choices[0].message.content == "hello"
            whole = await client.chat.completions.create(model="auto", messages=HELLO)
            assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("one\n\ntwo", "stop")
            assert whole.usage is not None
            stream = await client.chat.completions.create(
                model="auto", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(texts) == "one\n\ntwo"
            assert texts[:2] == ["one", "\n\ntwo"]
            assert chunks[-1].usage is not None
            assert [m.id async for m in client.models.list()][-1] == "auto"
        assert fleet.blocks == ["one", "two"] * 2


async def test_errors_are_the_clients_own(tmp_path: Path) -> None:
    """Exhausted: UnprocessableEntityError with the code and what was committed; within a stream: APIError."""
    async with (
        scripted_fleet(
            tmp_path, coder=("one", "two"), validator=(PASS, fail("no"), *[fail("no")] * 3, PASS, fail())
        ) as fleet,
        client_of(fleet) as client,
    ):
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await client.chat.completions.create(model="auto", messages=HELLO)
        assert caught.value.code == "validation_exhausted"
        body: Any = caught.value.body
        assert body["committed"] == ["one"]
        fleet.coder.answers[:] = ["one", "two"]
        stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "one"
        with pytest.raises(openai.APIError) as broken:
            await anext(stream)
        assert broken.value.code == "validation_exhausted"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="auto", input="x")
        assert refused.value.code == "auto_unsupported"


async def test_a_dead_validator_and_a_dead_router(tmp_path: Path) -> None:
    """The router's death is not noticed; the validator's is a 503 of the client's own kind."""
    async with (
        scripted_fleet(tmp_path, router=(500,), coder=("one",), validator=(500,)) as fleet,
        client_of(fleet) as client,
    ):
        answer = await client.chat.completions.create(model="auto", messages=GENERAL)
        assert answer.choices[0].message.content == "hello"
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="auto", messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (503, "validator_unavailable")
