"""The public OpenAI and Anthropic clients against the front, over the real llama-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from launcher.ir.live import UnavailableError
from launcher.route import Front, StaticUpstreams
from tests.late import Late
from tests.ports import free_port
from tests.route.fleet import SSE_HEAD, FakeFleet, Upstream, chunked, front_unit, running, table, target
from tests.route.test_upstream_faults import after_request

anthropic = Late("anthropic")
openai = Late("openai")

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("conformance")]  # one import of the clients for both
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
async def front_port(llama: int) -> AsyncIterator[int]:
    """A front over the real server, as `smol` with the role `chat`; `dead` is a server nobody runs."""
    units = (target("smol", llama, roles=("chat",)), target("dead", free_port()))
    async with running(Front(table(*units), StaticUpstreams())) as port:
        yield port


@pytest.fixture
async def gpt(front_port: int) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, without its own retries."""
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{front_port}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
async def claude(front_port: int) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client, without its own retries."""
    async with anthropic.AsyncAnthropic(
        base_url=f"http://127.0.0.1:{front_port}", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


async def test_chat(gpt: openai.AsyncOpenAI) -> None:
    """A chat completion by role."""
    answer = await gpt.chat.completions.create(model="chat", messages=HELLO, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


async def test_chat_stream_gives_the_same_text(gpt: openai.AsyncOpenAI) -> None:
    """Streamed and whole answers of a deterministic request are the same."""
    whole = await gpt.chat.completions.create(model="smol", messages=HELLO, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    stream = await gpt.chat.completions.create(
        model="smol",
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len(parts) > 1
    assert "".join(parts) == whole.choices[0].message.content


async def test_models_and_completions(gpt: openai.AsyncOpenAI) -> None:
    """The list, one model, and a plain completion."""
    assert [m.id async for m in gpt.models.list()] == ["smol", "dead"]
    assert (await gpt.models.retrieve("chat")).id == "smol"
    answer = await gpt.completions.create(model="smol", prompt="One, two,", max_tokens=4)
    assert answer.choices[0].text


async def test_errors_are_the_clients_own(gpt: openai.AsyncOpenAI) -> None:
    """Unknown model, unreachable server, refused embeddings: the classes that the client documents."""
    with pytest.raises(openai.NotFoundError) as unknown:
        await gpt.chat.completions.create(model="smoll", messages=HELLO)  # type: ignore[arg-type]
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.InternalServerError) as dead:
        await gpt.chat.completions.create(model="dead", messages=HELLO)  # type: ignore[arg-type]
    assert (dead.value.status_code, dead.value.code) == (503, "upstream_unreachable")
    with pytest.raises(openai.APIStatusError) as embeddings:
        await gpt.embeddings.create(model="smol", input="x")
    assert "embeddings" in embeddings.value.message


async def test_stream_that_dies_raises(gpt: openai.AsyncOpenAI) -> None:
    """Both clients raise the error event of a stream whose server died."""
    event = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"x","choices":[]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    script = after_request(head + b"%x\r\n%s\r\n" % (len(event), event))
    async with Upstream(script) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        client = gpt.with_options(base_url=f"http://127.0.0.1:{port}/v1")
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)  # type: ignore[arg-type]
        with pytest.raises(openai.APIError, match="closed the connection"):
            async for _ in stream:
                pass
        claude = anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0)
        async with claude:
            messages = await claude.messages.create(model="m", max_tokens=4, messages=HELLO, stream=True)  # type: ignore[arg-type]
            with pytest.raises(anthropic.APIStatusError, match="upstream_died"):
                async for _ in messages:
                    pass


async def test_messages(claude: anthropic.AsyncAnthropic) -> None:
    """Anthropic's API, whole and streamed, and its token count."""
    cold = {"temperature": 0}
    whole = await claude.messages.create(model="smol", max_tokens=8, messages=HELLO, extra_body=cold)  # type: ignore[arg-type]
    text = "".join(block.text for block in whole.content if block.type == "text")
    assert text
    async with claude.messages.stream(model="smol", max_tokens=8, messages=HELLO, extra_body=cold) as stream:  # type: ignore[arg-type]
        assert "".join([part async for part in stream.text_stream]) == text
    assert (await claude.messages.count_tokens(model="smol", messages=HELLO)).input_tokens > 0  # type: ignore[arg-type]
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="nope", max_tokens=8, messages=HELLO)  # type: ignore[arg-type]


async def test_other_paths_are_forwarded(front_port: int) -> None:
    """Responses, tokenize, detokenize, infill's error, props and slots: what llama-server serves is served."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front_port}", timeout=60) as client:
        tokens = (await client.post("/tokenize", json={"model": "smol", "content": "hello world"})).json()["tokens"]
        assert (await client.post("/detokenize", json={"tokens": tokens})).json()["content"].strip() == "hello world"
        prompt = (await client.post("/apply-template", json={"messages": HELLO})).json()["prompt"]
        assert "Say hello." in prompt
        response = await client.post("/v1/responses", json={"model": "smol", "input": "Hi", "max_output_tokens": 4})
        assert response.status_code == 200
        assert (await client.get("/props?model=chat")).json()["total_slots"] == 2
        assert len((await client.get("/slots")).json()) == 2
        assert (await client.get("/nope")).status_code == 404


async def test_client_that_leaves_cancels_its_generation(gpt: openai.AsyncOpenAI, front_port: int) -> None:
    """After a streaming client closes, no slot of the real server goes on generating."""
    stream = await gpt.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "Count to ten thousand."}],
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front_port}") as client:
        assert any(s["is_processing"] for s in (await client.get("/slots")).json())
        await stream.close()
        for _ in range(3000):
            if not any(s["is_processing"] for s in (await client.get("/slots")).json()):
                return
            await asyncio.sleep(0.02)
    pytest.fail("the generation went on")


async def test_the_public_client_reads_over_the_comments() -> None:
    """OpenAI's own: the same chunks, and an error of the stream as its error."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "a"}
    delta = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]}
    data = b"data: " + json.dumps(chunk | delta).encode() + b"\n\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await up.read(reader)
            writer.write(SSE_HEAD + chunked(data, b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with Upstream(script) as up:
        fleet, tries = FakeFleet(a="stopped"), 0

        async def wake(name: str) -> None:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0.1)
            if tries > 1:
                raise UnavailableError("server_failed", "it failed")
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        async with running(
            Front(table(target("a", up.port, start="demand"), front=front_unit(ping_after_s=0.02)), fleet)
        ) as port:
            url = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
                said = [c.choices[0].delta.content async for c in await _stream(client)]
                fleet.states["a"] = "stopped"
                with pytest.raises(openai.APIError, match="it failed"):
                    [c async for c in await _stream(client)]
    assert said == ["hello"]


async def _stream(client: openai.AsyncOpenAI) -> openai.AsyncStream[openai.types.chat.ChatCompletionChunk]:
    return await client.chat.completions.create(model="a", messages=[{"role": "user", "content": "x"}], stream=True)
