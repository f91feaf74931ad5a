"""The public clients get from the front what they get from llama-server itself, call by call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.route import Front, StaticUpstreams
from tests.late import Late
from tests.route.fleet import running, table, target
from tests.tinymodels import PROJECTORS
from tests.tinymodels.picture import png
from tests.tinymodels.running import RunningServer

anthropic = Late("anthropic")
openai = Late("openai")

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("conformance")]

VOLATILE = frozenset({"id", "created", "created_at", "completed_at", "timings", "cached_tokens", "item_id", "call_id"})
VOLATILE_ANTHROPIC = frozenset({"cache_read_input_tokens", "tool_use_id"})
EXACT: dict[str, Any] = {"temperature": 0, "seed": 1, "max_tokens": 12}
WHOLE: dict[str, Any] = {"extra_body": {"cache_prompt": False}}
"""A reused prompt cache computes in other batches, and the last bits of logits differ."""
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS: list[Any] = [{"type": "function", "function": WEATHER}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
LOOK: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": png(64, 64)}}],
    }
]
CLAUDE_TOOLS: list[Any] = [
    {"name": "weather", "description": "The weather of a city.", "input_schema": WEATHER["parameters"]}
]


class Clients:
    """Both public clients and a plain one for one base URL."""

    def __init__(self, url: str) -> None:
        """Without retries of their own, and without reading the machine's certificates twelve times a test."""
        self.http = httpx.AsyncClient(base_url=url, timeout=60, verify=False)  # noqa: S501  # http on loopback
        options: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60}
        gpt, claude = openai.DefaultAsyncHttpxClient(verify=False), anthropic.DefaultAsyncHttpxClient(verify=False)
        self.gpt = openai.AsyncOpenAI(base_url=f"{url}/v1", http_client=gpt, **options)
        self.claude = anthropic.AsyncAnthropic(base_url=url, http_client=claude, **options)

    async def close(self) -> None:
        """Close all three."""
        await self.gpt.close()
        await self.claude.close()
        await self.http.aclose()


Call = Callable[[Clients], Awaitable[Any]]


@pytest.fixture(scope="module")
def servers(llama: int, llama_server: Path, tiny_models: Callable[..., Path]) -> Iterator[dict[str, int]]:
    """Ports of real servers: chat, an embedder, a reranker and one that sees."""
    small = ("-c", "512", "-np", "1", "-t", "1")
    files = ("-m", tiny_models("qwen2vl"), "--mmproj", tiny_models(PROJECTORS["qwen2vl"]))
    bert = ("-m", tiny_models("bert"))
    with (
        RunningServer(llama_server, *bert, "--embeddings", *small) as embedder,
        RunningServer(llama_server, *files, "-c", "1024", "-np", "1", "-t", "1") as seeing,
    ):
        yield {"smol": llama, "embedder": embedder.port, "seeing": seeing.port}


@pytest.fixture
async def both(servers: dict[str, int]) -> AsyncIterator[dict[str, tuple[Clients, Clients]]]:
    """By server: clients that ask it directly, and clients that ask the front."""
    seen = ("text", "image")
    units = [target(n, port, **({"modalities": seen} if n == "seeing" else {})) for n, port in servers.items()]
    async with running(Front(table(*units), StaticUpstreams())) as port:
        through = Clients(f"http://127.0.0.1:{port}")
        direct = {name: Clients(f"http://127.0.0.1:{own}") for name, own in servers.items()}
        try:
            yield {name: (clients, through) for name, clients in direct.items()}
        finally:
            for clients in (through, *direct.values()):
                await clients.close()


def steady(value: Any) -> Any:
    """`value` without ids, times and the state of a cache."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE | VOLATILE_ANTHROPIC}
    if isinstance(value, list | tuple):
        return [steady(v) for v in value]
    return value


async def outcome(call: Call, clients: Clients) -> tuple[str, Any]:
    """What a call comes to: its result, or the class and content of the client's error."""
    try:
        return "ok", steady(await call(clients))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return type(error).__name__, (error.status_code, steady(error.body))
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        return type(error).__name__, None


def chat(**changes: Any) -> Call:
    """A chat completion by OpenAI's client."""

    async def call(clients: Clients) -> Any:
        asked = {"model": "smol", "messages": HELLO} | EXACT | WHOLE | changes
        answer = await clients.gpt.chat.completions.create(**asked)
        return [chunk async for chunk in answer] if asked.get("stream") else answer

    return call


def completion(**changes: Any) -> Call:
    """A plain completion."""

    async def call(clients: Clients) -> Any:
        asked = {"model": "smol", "prompt": "One, two,"} | EXACT | WHOLE | changes
        answer = await clients.gpt.completions.create(**asked)
        return [chunk async for chunk in answer] if asked.get("stream") else answer

    return call


def response(**changes: Any) -> Call:
    """OpenAI's responses; streamed events as their types and text."""

    async def call(clients: Clients) -> Any:
        asked: dict[str, Any] = {"model": "smol", "input": "Say hello.", "temperature": 0, "max_output_tokens": 8}
        asked |= WHOLE | changes
        answer = await clients.gpt.responses.create(**asked)
        if asked.get("stream"):
            return [(event.type, getattr(event, "delta", None)) async for event in answer]
        return answer.output_text, answer.status, answer.usage

    return call


def embedding(**changes: Any) -> Call:
    """Embeddings."""

    async def call(clients: Clients) -> Any:
        return await clients.gpt.embeddings.create(**({"model": "embedder", "input": "a word"} | changes))

    return call


def messages(**changes: Any) -> Call:
    """Anthropic's messages."""

    async def call(clients: Clients) -> Any:
        body = {"temperature": 0, "cache_prompt": False}
        asked = {"model": "smol", "max_tokens": 12, "messages": HELLO, "extra_body": body} | changes
        answer = await clients.claude.messages.create(**asked)
        return [event async for event in answer] if asked.get("stream") else answer

    return call


async def streamed_text(clients: Clients) -> Any:
    """Anthropic's streaming helper, which puts the message together again."""
    body = {"temperature": 0, "cache_prompt": False}
    async with clients.claude.messages.stream(model="smol", max_tokens=12, messages=HELLO, extra_body=body) as stream:
        return [part async for part in stream.text_stream], await stream.get_final_message()


async def count_tokens(clients: Clients) -> Any:
    """Anthropic's count of a prompt's tokens."""
    return await clients.claude.messages.count_tokens(model="smol", messages=HELLO)


def plain(method: str, path: str, body: Any = None, **headers: str) -> Call:
    """Any path of llama-server's, by a plain client: status, type and content."""

    async def call(clients: Clients) -> Any:
        answer = await clients.http.request(method, path, json=body, headers=headers)
        kind = answer.headers.get("content-type", "").partition(";")[0]
        return answer.status_code, kind, answer.json() if "json" in kind else answer.text

    return call


async def impatient(clients: Clients) -> Any:
    """A client whose own timeout ends the call."""
    hasty = clients.gpt.with_options(timeout=0.05)
    return await hasty.chat.completions.create(
        model="smol", messages=HELLO, max_tokens=60, extra_body={"ignore_eos": True}
    )


async def _slots(clients: Clients, *, busy: bool) -> None:
    """Wait until a slot of the server is busy, or none is."""
    while any(slot["is_processing"] for slot in (await clients.http.get("/slots")).json()) is not busy:  # noqa: ASYNC110  # another process
        await asyncio.sleep(0.01)


async def cancelled(clients: Clients) -> Any:
    """A stream of many seconds that is cancelled: the server is free long before its end.

    Without `stream` llama-server goes on for nobody, asked directly too (its issue 24496).
    """
    await _slots(clients, busy=False)
    stream = await clients.gpt.chat.completions.create(
        model="smol", messages=HELLO, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await _slots(clients, busy=True)
    await stream.close()
    async with asyncio.timeout(5):
        await _slots(clients, busy=False)
    return "free"


REFUSED: dict[str, Any] = {"temperature": "hot"}
CALLS: dict[str, tuple[str, Call]] = {
    "chat": ("smol", chat()),
    "chat with a system prompt": ("smol", chat(messages=[{"role": "system", "content": "Be brief."}, *HELLO])),
    "chat of several turns": ("smol", chat(messages=[*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO])),
    "chat, streamed": ("smol", chat(stream=True)),
    "chat, streamed with usage": ("smol", chat(stream=True, stream_options={"include_usage": True})),
    "chat with a stop": ("smol", chat(stop=[" ", "\n"])),
    "chat of one token": ("smol", chat(max_tokens=1)),
    "chat with penalties and bias": ("smol", chat(frequency_penalty=0.5, presence_penalty=0.5, logit_bias={"5": -1})),
    "logprobs": ("smol", chat(logprobs=True, top_logprobs=3)),
    "logprobs, streamed": ("smol", chat(logprobs=True, top_logprobs=2, stream=True)),
    "a JSON object": ("smol", chat(response_format={"type": "json_object"}, max_tokens=24)),
    "a JSON schema": (
        "smol",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}),
    ),
    "a schema that is none": (
        "smol",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}),
    ),
    "tools": ("smol", chat(tools=TOOLS, max_tokens=24)),
    "a tool that must be called": ("smol", chat(tools=TOOLS, tool_choice="required", max_tokens=24)),
    "a tool called, streamed": ("smol", chat(tools=TOOLS, tool_choice="required", max_tokens=24, stream=True)),
    "a tool's result": (
        "smol",
        chat(
            tools=TOOLS,
            messages=[
                *HELLO,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"X"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
            ],
        ),
    ),
    "unicode": ("smol", chat(messages=[{"role": "user", "content": "こんにちは — 🦙 \u202e\x00"}])),
    "completion": ("smol", completion()),
    "completion, streamed": ("smol", completion(stream=True)),
    "completion with logprobs": ("smol", completion(logprobs=2)),
    "completions of a list": ("smol", completion(prompt=["One,", "Two,"])),
    "responses": ("smol", response()),
    "responses, streamed": ("smol", response(stream=True)),
    "responses with instructions": ("smol", response(instructions="Be brief.")),
    "embedding": ("embedder", embedding()),
    "embedding as floats": ("embedder", embedding(encoding_format="float")),
    "embeddings of a list": ("embedder", embedding(input=["one", "two", "three"])),
    "an embedding that is too long": ("embedder", embedding(input="word " * 2000)),
    "an embedding of nothing": ("embedder", embedding(input=[])),
    "an embedding of a chat model": ("smol", embedding(model="smol")),
    "an image": ("seeing", chat(model="seeing", messages=LOOK)),
    "an image, streamed": ("seeing", chat(model="seeing", messages=LOOK, stream=True)),
    "an image that is none": (
        "seeing",
        chat(
            model="seeing",
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                }
            ],
        ),
    ),
    "a prompt that is too long": ("smol", chat(messages=[{"role": "user", "content": "word " * 3000}])),
    "a prompt that is too long, streamed": (
        "smol",
        chat(messages=[{"role": "user", "content": "word " * 3000}], stream=True),
    ),
    "no messages": ("smol", chat(messages=[])),
    "a role that is none": ("smol", chat(messages=[{"role": "nobody", "content": "x"}])),
    "a number that is none": ("smol", chat(**REFUSED)),
    "messages": ("smol", messages()),
    "messages, streamed": ("smol", messages(stream=True)),
    "messages by the helper": ("smol", streamed_text),
    "messages with a system prompt": ("smol", messages(system="Be brief.")),
    "messages with stops": ("smol", messages(stop_sequences=[" "])),
    "messages with tools": ("smol", messages(tools=CLAUDE_TOOLS, max_tokens=24)),
    "messages with a tool that must be called": (
        "smol",
        messages(tools=CLAUDE_TOOLS, tool_choice={"type": "any"}, max_tokens=24),
    ),
    "messages that are too long": ("smol", messages(messages=[{"role": "user", "content": "word " * 3000}])),
    "messages without any": ("smol", messages(messages=[])),
    "count_tokens": ("smol", count_tokens),
    "input_tokens": ("smol", plain("POST", "/v1/responses/input_tokens", {"model": "smol", "input": "Say hello."})),
    "tokenize": ("smol", plain("POST", "/tokenize", {"model": "smol", "content": "a b", "with_pieces": True})),
    "detokenize": ("smol", plain("POST", "/detokenize", {"model": "smol", "tokens": [1, 2, 3]})),
    "apply-template": ("smol", plain("POST", "/apply-template", {"model": "smol", "messages": HELLO})),
    "the native completion": (
        "smol",
        plain("POST", "/completion", {"model": "smol", "prompt": "One,", "n_predict": 4, "temperature": 0}),
    ),
    "a rerank that is not served": (
        "embedder",
        plain("POST", "/v1/rerank", {"model": "embedder", "query": "x", "documents": ["a"]}),
    ),
    "an infill that is not served": ("smol", plain("POST", "/infill", {"model": "smol", "input_prefix": "x"})),
    "lora adapters": ("smol", plain("GET", "/lora-adapters?model=smol")),
    "the client's own timeout": ("smol", impatient),
    "cancellation": ("smol", cancelled),
}


@pytest.mark.parametrize("name", CALLS)
async def test_same_as_direct(name: str, both: dict[str, tuple[Clients, Clients]]) -> None:
    """The same result, or the same error with the same content."""
    server, call = CALLS[name]
    direct, through = both[server]
    if name.startswith("messages"):
        await outcome(call, direct)  # Anthropic's API has no switch for the prompt cache: let both find it full
    expected = await outcome(call, direct)
    assert await outcome(call, through) == expected
