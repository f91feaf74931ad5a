"""Calls of the public clients, each with the server that is asked: what it says is compared by `test_conformance`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from tests.late import Late
from tests.tinymodels.picture import png

anthropic = Late("anthropic")
openai = Late("openai")

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
PICTURE = png(64, 64)
PNG = PICTURE.partition(",")[2]
LOOK: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PICTURE}}],
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


def seen(url: str) -> Call:
    """A chat about the image at `url`."""
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
    return chat(model="seeing", messages=[{"role": "user", "content": parts}])


def served_image(path: str) -> Call:
    """A chat about an image that the server fetches, from a page of ours."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        data = base64.b64decode(PNG) if wanted == b"/picture.png" else b""
        writer.write(b"HTTP/1.1 %b X\r\nContent-Length: %d\r\n\r\n" % (b"200" if data else b"404", len(data)) + data)
        writer.close()

    async def call(clients: Clients) -> Any:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as page:
            return await seen(f"http://127.0.0.1:{page.sockets[0].getsockname()[1]}{path}")(clients)

    return call


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
    "chat, streamed": ("smol", chat(stream=True)),
    "chat with a stop": ("smol", chat(stop=[" ", "\n"])),
    "logprobs, streamed": ("smol", chat(logprobs=True, top_logprobs=2, stream=True)),
    "a JSON schema": (
        "smol",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}),
    ),
    "a schema that is none": (
        "smol",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}),
    ),
    "tools": ("smol", chat(tools=TOOLS, max_tokens=24)),
    "a tool called, streamed": ("smol", chat(tools=TOOLS, tool_choice="required", max_tokens=24, stream=True)),
    "unicode": ("smol", chat(messages=[{"role": "user", "content": "こんにちは — 🦙 \u202e\x00"}])),
    "completion": ("smol", completion()),
    "completion, streamed": ("smol", completion(stream=True)),
    "completions of a list": ("smol", completion(prompt=["One,", "Two,"])),
    "responses": ("smol", response()),
    "responses, streamed": ("smol", response(stream=True)),
    "embedding": ("embedder", embedding()),
    "embeddings of a list": ("embedder", embedding(input=["one", "two", "three"])),
    "an embedding that is too long": ("embedder", embedding(input="word " * 2000)),
    "an embedding of nothing": ("embedder", embedding(input=[])),
    "an embedding of a chat model": ("smol", embedding(model="smol")),
    "an image": ("seeing", chat(model="seeing", messages=LOOK)),
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
"""What `make test` asks."""
MORE: dict[str, tuple[str, Call]] = {
    "chat with a system prompt": ("smol", chat(messages=[{"role": "system", "content": "Be brief."}, *HELLO])),
    "chat of several turns": ("smol", chat(messages=[*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO])),
    "chat, streamed with usage": ("smol", chat(stream=True, stream_options={"include_usage": True})),
    "chat of one token": ("smol", chat(max_tokens=1)),
    "chat with penalties and bias": ("smol", chat(frequency_penalty=0.5, presence_penalty=0.5, logit_bias={"5": -1})),
    "logprobs": ("smol", chat(logprobs=True, top_logprobs=3)),
    "a JSON object": ("smol", chat(response_format={"type": "json_object"}, max_tokens=24)),
    "a tool that must be called": ("smol", chat(tools=TOOLS, tool_choice="required", max_tokens=24)),
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
    "completion with logprobs": ("smol", completion(logprobs=2)),
    "responses with instructions": ("smol", response(instructions="Be brief.")),
    "embedding as floats": ("embedder", embedding(encoding_format="float")),
    "an image, streamed": ("seeing", chat(model="seeing", messages=LOOK, stream=True)),
    "messages with a system prompt": ("smol", messages(system="Be brief.")),
    "messages with stops": ("smol", messages(stop_sequences=[" "])),
    "messages with tools": ("smol", messages(tools=CLAUDE_TOOLS, max_tokens=24)),
    "messages with a tool that must be called": (
        "smol",
        messages(tools=CLAUDE_TOOLS, tool_choice={"type": "any"}, max_tokens=24),
    ),
    "a tool that is named": (
        "smol",
        chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=24),
    ),
    "two tools at once": (
        "smol",
        chat(
            tools=[*TOOLS, {"type": "function", "function": WEATHER | {"name": "tides"}}],
            tool_choice="required",
            parallel_tool_calls=True,
            max_tokens=48,
        ),
    ),
    "no tool": ("smol", chat(tools=TOOLS, tool_choice="none")),
    "a tool that is none": ("smol", chat(tools=[{"type": "function"}])),
    "a grammar": ("smol", chat(extra_body={"grammar": 'root ::= "yes" | "no"', "cache_prompt": False})),
    "a grammar that is none": ("smol", chat(extra_body={"grammar": "root ::= ("})),
    "two answers": ("smol", chat(n=2)),
    "two answers, streamed": ("smol", chat(n=2, stream=True)),
    "what OpenAI's clients send beside": (
        "smol",
        chat(user="me", store=False, metadata={"a": "b"}, service_tier="auto", max_completion_tokens=4),
    ),
    "a developer's prompt": ("smol", chat(messages=[{"role": "developer", "content": "Be brief."}, *HELLO])),
    "a long system prompt": ("smol", chat(messages=[{"role": "system", "content": "word " * 60}, *HELLO])),
    "an answer that is begun": ("smol", chat(messages=[*HELLO, {"role": "assistant", "content": "Hel"}])),
    "content in parts": ("smol", chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Say"}] * 2}])),
    "completion with logprobs, streamed": ("smol", completion(logprobs=2, stream=True)),
    "completion of tokens": ("smol", completion(prompt=[504, 28, 961])),
    "completion, echoed": ("smol", completion(echo=True)),
    "completion with a suffix": ("smol", completion(suffix="end", n=2)),
    "responses with a tool": ("smol", response(tools=[{"type": "function", **WEATHER}], tool_choice="required")),
    "responses of a schema": (
        "smol",
        response(text={"format": {"type": "json_schema", "name": "x", "strict": True, "schema": SCHEMA}}),
    ),
    "responses that go on": ("smol", response(previous_response_id="resp_1")),
    "responses of messages": ("smol", response(input=[*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO])),
    "embedding in base64": (
        "embedder",
        plain("POST", "/v1/embeddings", {"model": "embedder", "input": "a", "encoding_format": "base64"}),
    ),
    "embedding of fewer dimensions": ("embedder", embedding(dimensions=8)),
    "embedding of tokens": ("embedder", embedding(input=[[5, 6, 7], [8]])),
    "embedding as llama.cpp has it": ("embedder", plain("POST", "/embedding", {"model": "embedder", "content": "a"})),
    "two images": ("seeing", chat(model="seeing", messages=[LOOK[0] | {"content": LOOK[0]["content"] * 2}])),
    "an image by its URL": ("seeing", served_image("/picture.png")),
    "an image that is not there": ("seeing", served_image("/none.png")),
    "an image of a file": ("seeing", seen("file:///etc/hostname")),
    "messages with an image": (
        "seeing",
        messages(
            model="seeing",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                        {"type": "text", "text": "what?"},
                    ],
                }
            ],
        ),
    ),
    "messages with tools, streamed": (
        "smol",
        messages(tools=CLAUDE_TOOLS, tool_choice={"type": "any"}, max_tokens=24, stream=True),
    ),
    "messages with a tool's result": (
        "smol",
        messages(
            tools=CLAUDE_TOOLS,
            messages=[
                *HELLO,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "X"}}],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
            ],
        ),
    ),
    "messages with a system prompt in parts": (
        "smol",
        messages(system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
    ),
    "messages with thinking": (
        "smol",
        messages(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=12, metadata={"user_id": "u"}),
    ),
    "messages of nobody's role": ("smol", messages(messages=[{"role": "nobody", "content": "x"}])),
    "chat without /v1": ("smol", plain("POST", "/chat/completions", {"model": "smol", "messages": HELLO} | EXACT)),
    "a method that is none": ("smol", plain("GET", "/v1/chat/completions?model=smol")),
    "a path that is none": ("smol", plain("POST", "/v1/nothing?model=smol", {"model": "smol"})),
    "speech that is not served": ("smol", plain("POST", "/v1/audio/speech", {"model": "smol", "input": "x"})),
    "adapters that are none": ("smol", plain("POST", "/lora-adapters?model=smol", [{"id": 7, "scale": 1.0}])),
    "no adapters": ("smol", plain("POST", "/lora-adapters?model=smol", [])),
}
"""What `make soak` asks beside."""
