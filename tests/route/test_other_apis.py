"""Other programs' APIs, as their own clients use them: Ollama's Python client, llama.cpp's router, llama-swap."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.ir.fleet import FaceUnit
from launcher.route import Front
from launcher.route.other_apis import api_of
from tests.late import Late
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    answering,
    ask,
    chunked,
    front_unit,
    get,
    post,
    running,
    table,
    target,
    until,
)

ollama = Late("ollama")

ALL = ("llama_router", "llama_swap", "ollama")
VECTORS = {
    "data": [{"index": 1, "embedding": [3.0]}, {"index": 0, "embedding": [1.0, 2.0]}],
    "usage": {"prompt_tokens": 4},
}
pytestmark = pytest.mark.timeout(300)


class Unloading(FakeFleet):
    """A fleet that lets go of what is started on demand."""

    async def unload(self, name: str) -> None:
        """As told."""
        if name == "fixed":
            await super().unload(name)
        self.states[name] = "stopped"


def whole(value: Any, status: str = "200 OK") -> bytes:
    """A scripted answer."""
    data = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.xdist_group("conformance")
async def test_the_public_client_of_ollama_talks_to_a_fleet(llama: int) -> None:
    """Lists, chats, generates, embeds, loads and unloads; a real llama-server writes."""
    async with answering(whole(VECTORS)) as embedder:
        units = (
            target(
                "chat",
                llama,
                n_params=135_000_000,
                size_bytes=9,
                start="demand",
                faces={"chat:cold": FaceUnit(request_defaults={"temperature": 0})},
            ),
            target("embed", embedder.port, embedding=True),
        )
        names = {"chat": ("chat",), "chat:cold": ("chat",), "embed": ("embed",)}
        fleet = Unloading(embed="ready")
        front = Front(table(*units, names=names, front=front_unit(apis=ALL)), fleet)
        async with running(front) as port, contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(ollama.AsyncClient(host=f"http://127.0.0.1:{port}"))
            listed = {model.model: model for model in (await client.list()).models}
            shown = await client.show("chat:latest")
            hello = [{"role": "user", "content": "Say hello."}]
            exact: dict[str, Any] = {"temperature": 0, "seed": 1, "num_predict": 2}
            said = await client.chat("chat", messages=hello, options=exact)
            parts = [p async for p in await client.chat("chat:cold", messages=hello, options=exact, stream=True)]
            written = await client.generate("chat", prompt="Once upon a time", raw=True, options=exact)
            shaped = await client.generate("chat", prompt="Age?", format=AGE, options={**exact, "num_predict": 128})
            vectors = await client.embed("embed", ["a", "b"])
            old = await client.embeddings("embed", "a")
            with pytest.raises(ollama.ResponseError, match="does not exist") as unknown:
                await client.chat("nobody", messages=hello)
            with pytest.raises(ollama.ResponseError, match="exceeds the available context") as refused:
                await client.generate("chat", prompt="word " * 3000)
            before = {model.model for model in (await client.ps()).models}
            gone = await client.generate("chat", prompt="", keep_alive=0)
            after = {model.model for model in (await client.ps()).models}
            loaded = await client.chat("chat", messages=[])
            await until(lambda: fleet.state("chat") == "ready")
            requests = front.requests.ended()
    assert listed.keys() == {"chat", "chat:cold", "embed"}
    assert (listed["chat"].size, listed["chat"].details and listed["chat"].details.parameter_size) == (9, "135M")
    assert shown.modelinfo is not None
    assert shown.modelinfo["launch.context_length"] == 512
    assert shown.capabilities == ["completion", "tools"]
    assert said.message.content
    assert (said.done, said.done_reason, said.eval_count) == (True, "length", 2)
    assert said.eval_duration
    assert "".join(part.message.content or "" for part in parts) == said.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert written.response
    assert json.loads(shaped.response).keys() == {"age"}
    assert ([*map(list, vectors.embeddings)], vectors.prompt_eval_count) == ([[1.0, 2.0], [3.0]], 4)
    assert list(old.embedding) == [1.0, 2.0]
    assert (unknown.value.status_code, refused.value.status_code) == (404, 400)
    assert before == {"chat", "chat:cold", "embed"}
    assert (gone.done_reason, after, loaded.done_reason) == ("unload", {"embed"}, "load")
    assert {(r.path, r.asked) for r in requests} == {
        ("/v1/chat/completions", "chat"),
        ("/v1/chat/completions", "chat:cold"),
        ("/v1/completions", "chat"),
    }


# An object of at most 128 tokens, whatever white space between its parts the grammar lets the model write.
AGE = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}


async def test_tools_and_images_are_carried_over_and_broken_streams_are_errors() -> None:
    """What a scripted server got and said; a client that leaves ends the generation."""
    call = {"index": 0, "function": {"name": "weather", "arguments": '{"city": '}}
    more = {"index": 0, "function": {"arguments": '"Rome"}'}}
    events = [{"delta": {"tool_calls": [call]}}, {"delta": {"tool_calls": [more]}, "finish_reason": "tool_calls"}]
    good = _events(*({"choices": [event]} for event in events))
    cut = _events({"choices": [{"delta": {"content": "half", "reasoning_content": "hm"}}]})
    failing = _events({"error": {"message": "out of luck"}})
    async with answering(good, cut, failing, OK) as up:
        front = Front(table(target("a", up.port), front=front_unit(apis=ALL)), FakeFleet())
        async with running(front) as port, contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(ollama.AsyncClient(host=f"http://127.0.0.1:{port}"))
            messages: list[dict[str, Any]] = [
                {"role": "user", "content": "Look.", "images": [base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]},
                {"role": "tool", "content": "noon", "tool_name": "now"},
            ]
            asked = await client.chat("a", messages=messages, tools=[], think=False, format="json")
            with pytest.raises(ollama.ResponseError, match="broke off"):
                [part async for part in await client.chat("a", messages=messages[:1], stream=True)]
            for _ in range(2):
                with pytest.raises(ollama.ResponseError) as failed:
                    await client.generate("a", prompt="x", system="be brief", suffix=None)
                assert str(failed.value.error) in ("out of luck", "the server's answer broke off")
            unfit = await ask(port, post({"model": "a", "prompt": "x", "suffix": "y"}, "/api/generate"))
            wrong = await ask(port, post(b'{"model": "a", "messages": 7}', "/api/chat"))
            none = await ask(port, post(b"{}", "/api/show"))
            refused = front.refused.copy()
    sent = json.loads(up.requests[0].body)
    assert asked.message.tool_calls is not None
    assert dict(asked.message.tool_calls[0].function.arguments) == {"city": "Rome"}
    assert sent["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "now", "arguments": '{"zone":"UTC"}'}
    assert sent["messages"][1]["tool_calls"][0]["id"] == sent["messages"][2]["tool_call_id"]
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert json.loads(up.requests[2].body)["messages"][0] == {"role": "system", "content": "be brief"}
    assert [(answer.status, answer.json()["code"]) for answer in (unfit, wrong, none)] == [
        (400, "suffix_not_supported"),
        (400, "invalid_json"),
        (400, "model_required"),
    ]
    assert "internal_error" not in refused


GARBAGE: dict[str, tuple[Any, ...]] = {
    "/api/embed": (
        "",
        "{}",
        [],
        {"data": [{"embedding": [1, "x"]}]},
        {"data": []},
        {"data": [{"embedding": [1.0]}]},
    ),
    "/api/embeddings": ("\udcff", {"data": []}, {"data": [{"embedding": None}]}),
    "/api/chat": (7, [], {"choices": [3]}, {"choices": [{"delta": {"content": 3}}]}, {"usage": {"prompt_tokens": "x"}}),
    "/api/generate": ({"choices": [{"delta": {"tool_calls": [{"function": {"name": 1}}]}}]}, "\udcff", "[" * 5000),
}
"""Path of Ollama's → what no server of OpenAI's API would answer there."""


async def test_what_is_no_answer_is_an_error_of_the_server() -> None:
    """502 where something else than an answer comes, never a fault of ours: found by `make fuzz`."""

    def written(value: Any) -> bytes:
        return (value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogateescape")

    answers = [
        _stream(b"data: " + written(v) + b"\n\n") if path in ("/api/chat", "/api/generate") else _body(written(v))
        for path, values in GARBAGE.items()
        for v in values
    ]
    asked = {"model": "a", "prompt": "x", "input": ["x", "y"], "messages": [{"role": "user", "content": "x"}]}
    async with answering(*answers) as up:
        front = Front(table(target("a", up.port), front=front_unit(apis=ALL)), FakeFleet())
        async with running(front) as port:
            got = [await ask(port, post(asked, path)) for path, values in GARBAGE.items() for _ in values]
    assert {(answer.status, answer.json()["code"]) for answer in got} == {(502, "upstream_garbage")}


def _body(data: bytes) -> bytes:
    """A JSON answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def _stream(data: bytes) -> bytes:
    """An event stream, closed by its length."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def _events(*values: Any) -> bytes:
    """A stream of events."""
    return _stream(b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values))


async def test_the_router_and_llama_swap_load_unload_and_tell() -> None:
    """States as each calls them; a page of another site unloads nothing."""
    async with answering(OK) as up:
        units = (target("a", up.port, start="demand"), target("fixed", up.port), target("org/b:q4", up.port))
        fleet = Unloading(a="stopped")
        front = Front(table(*units, front=front_unit(apis=ALL)), fleet)
        async with running(front) as port, RawClient(port) as listener:
            listener.send(get("/models/sse"))
            assert (await listener.head())[0] == 200
            first = [json.loads((await listener.chunk())[6:]) for _ in units]
            load = await ask(port, post({"model": "a"}, "/models/load"))
            told = json.loads((await listener.chunk())[6:])
            everything = await ask(port, get("/running"))
            foreign = await ask(port, get("/unload", "Sec-Fetch-Site: cross-site"))
            still = fleet.state("a")
            unload = await ask(port, get("/unload"))
            states = [fleet.state("a")]
            fleet.states["a"] = "ready"
            await ask(port, post({"model": "a"}, "/models/unload"))
            states.append(fleet.state("a"))
            fleet.states["a"] = "ready"
            await ask(port, post(b"", "/api/models/unload/a"))
            states.append(fleet.state("a"))
            fixed = await ask(port, post({"model": "fixed"}, "/models/unload"))
            bad = [await ask(port, post(body, "/models/load")) for body in (b"", b"7", b'{"model": "x"}')]
            passed = await ask(port, get("/upstream/org%2Fb:q4/slots?x=%20"))
            plain = await ask(port, get("/upstream/org/b:q4/props"))
            slash = await ask(port, get("/upstream/a"))
            nobody = await ask(port, get("/upstream/zzz/props"))
    assert [event["model"] for event in first] == ["a", "fixed", "org/b:q4"]
    assert first[0] == {"model": "a", "event": "model_status", "data": {"status": "unloaded"}}
    assert (load.status, load.json()) == (200, {"success": True})
    assert told == {"model": "a", "event": "model_status", "data": {"status": "loaded"}}
    assert everything.json()["running"][0] == {"model": "a", "state": "ready"}
    assert (foreign.status, foreign.code, still) == (403, "origin_not_allowed", "ready")
    assert (unload.status, unload.body, states) == (200, b"OK", ["stopped"] * 3)
    assert (fixed.status, fixed.code) == (409, "not_unloaded")
    assert [answer.code for answer in bad] == ["model_required", "invalid_json", "model_not_found"]
    assert [answer.body for answer in (passed, plain)] == [b'{"ok":true}'] * 2
    assert [request.line for request in up.requests[-2:]] == ["GET /slots?x=%20 HTTP/1.1", "GET /props HTTP/1.1"]
    assert (slash.status, slash.headers["location"], nobody.status) == (301, "/upstream/a/", 404)


async def test_without_the_switch_there_is_nothing_and_keys_hold(tmp_path: Path) -> None:
    """404 as before; and a key without `admin` loads nothing, one for some models sees those."""
    keys = tmp_path / "keys"
    keys.write_text("first-key name=one models=a\nsecond-key name=two scopes=infer,admin\n")
    keys.chmod(0o600)
    async with answering(OK) as up:
        units = (target("a", up.port, start="demand"), target("b", up.port, start="demand"))
        async with running(Front(table(*units), FakeFleet())) as port:
            off = [(await ask(port, get(path))).status for path in ("/api/tags", "/models/sse", "/api/version")]
        limited = table(*units, front=front_unit(apis=ALL, api_key_file=str(keys)))
        async with running(Front(limited, Unloading())) as port:
            one, two = "Authorization: Bearer first-key", "Authorization: Bearer second-key"
            seen = (await ask(port, get("/api/tags", one))).json()["models"]
            nobody = await ask(port, get("/api/tags"))
            answers = [
                await ask(port, request)
                for request in (
                    post({"model": "a"}, "/models/load", one),
                    get("/unload", one),
                    post({"model": "b", "prompt": "x"}, "/api/generate", one),
                    post({"model": "a", "prompt": "", "keep_alive": 0}, "/api/generate", one),
                    post({}, "/upstream/a/slots/0", one),
                    get("/upstream/b/props", one),
                    post({"model": "b"}, "/models/unload", two),
                )
            ]
    assert off == [404, 404, 404]
    assert [model["name"] for model in seen] == ["a"]
    assert nobody.status == 401
    assert [answer.status for answer in answers] == [403, 403, 403, 403, 403, 403, 200]


def test_paths_are_theirs_alone() -> None:
    """By method, and by what is switched on."""
    assert api_of("POST", "/api/chat", ("ollama",)) == "ollama"
    assert api_of("GET", "/api/chat", ("ollama",)) == ""
    assert api_of("HEAD", "/api/version", ("ollama",)) == "ollama"
    assert api_of("GET", "/upstream/a/x", ("ollama",)) == ""
    assert api_of("POST", "/api/models/unload/a", ("llama_swap",)) == "llama_swap"
    assert api_of("POST", "/api/pull", ALL) == ""


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("org/m/v1/models", "/v1/models"),
        ("org%2Fm/v1/models", "/v1/models"),
        ("%6frg%2fm/slots/1?x=%2F", "/slots/1?x=%2F"),
        ("org/m/v1/x%2Fy", "/v1/x%2Fy"),
        ("org%2Fm/", "/"),
    ],
)
async def test_a_named_server_is_asked_for_the_rest_of_the_path(path: str, asked: str) -> None:
    """However the slash in its name is written; what follows goes on as it came."""
    async with answering(OK) as up:
        unit = table(target("m", up.port, aliases=("org/m",)), front=front_unit(apis=("llama_swap",)))
        async with running(Front(unit, FakeFleet())) as port:
            assert (await ask(port, get(f"/upstream/{path}"))).status == 200
            redirect = await ask(port, get("/upstream/org%2Fm"))
            assert (redirect.status, redirect.headers["location"]) == (301, "/upstream/org%2Fm/")
            assert (await ask(port, get("/upstream/org/m%2Fv1/models"))).status == 404
    assert [request.line for request in up.requests] == [f"GET {asked} HTTP/1.1"]


async def test_a_byte_order_mark_is_no_part_of_a_body() -> None:
    """Windows writes one before a file's text."""
    async with answering(OK) as up:
        unit = table(target("m", up.port, start="demand"), front=front_unit(apis=ALL))
        async with running(Front(unit, FakeFleet())) as port:
            for path in ("/api/show", "/models/load", "/v1/chat/completions"):
                data = b'\xef\xbb\xbf{"model":"m"}'
                lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                answer = await ask(port, f"{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                assert (path, answer.status) == (path, 200)


@pytest.mark.parametrize("scopes", ["infer", "infer,admin"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_out_is_followed_by_the_next(tmp_path: Path, scopes: str, *, stream: bool) -> None:
    """`keep_alive: 0` of who may not unload, or of a server that stays: not a byte comes after the answer's end."""
    event = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    keys = tmp_path / "keys"
    keys.write_text(f"long-enough-key scopes={scopes}\n")
    async with answering(SSE_HEAD + chunked(event) + b"0\r\n\r\n") as up:
        unit = front_unit(apis=ALL, api_key_file=str(keys))
        async with running(Front(table(target("m", up.port, start="demand"), front=unit), FakeFleet())) as port:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "keep_alive": 0, "stream": stream}
            async with RawClient(port) as client:
                client.send(post(body, "/api/chat", "Authorization: Bearer long-enough-key") + get("/health"))
                said = [await client.answer(), await client.answer()]
    assert [answer.status for answer in said] == [200, 200]
    assert json.loads(said[0].body.splitlines()[-1])["done"]
    assert json.loads(said[1].body) == {"status": "ok"}


async def test_a_model_is_loaded_once_for_all_who_want_it() -> None:
    """Each of those who waited for a start that takes long would be kept until it ends."""
    fleet, come = FakeFleet(m="stopped"), asyncio.Event()

    async def start(name: str) -> None:
        await come.wait()
        fleet.states[name] = "ready"

    fleet.on_wake = start
    async with answering(OK) as up:
        unit = table(target("m", up.port, start="demand"), front=front_unit(apis=ALL))
        async with running(Front(unit, fleet)) as port, RawClient(port) as client:
            for _ in range(20):
                assert (await client.ask(post({"model": "m"}, "/models/load"))).status == 200
            assert fleet.woken == ["m"]
            come.set()
            await until(lambda: fleet.left == [("m", True)])
            fleet.states["m"] = "stopped"
            await client.ask(post({"model": "m"}, "/models/load"))
            await until(lambda: fleet.woken == ["m", "m"])


async def test_null_says_nothing_to_ollama() -> None:
    """As its own server reads it: clients send it for the content beside calls, and for what they leave out."""
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": None}}]}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}, called], "prompt": None, "stream": None}
    async with answering(SSE_HEAD + b"0\r\n\r\n") as up:
        front = Front(table(target("m", up.port), front=front_unit(apis=ALL)), FakeFleet())
        async with running(front) as port:
            await ask(port, post(body, "/api/chat"))
    messages = json.loads(up.requests[0].body)["messages"]
    assert [message["content"] for message in messages] == ["x", ""]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_a_big_body_for_a_named_server_is_read_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of many messages takes a second to read, in which nobody else would be answered."""
    monkeypatch.setattr("launcher.route.front.media_in", lambda _: pytest.fail("it is read in the event loop"))
    image = {"type": "image_url", "image_url": {"url": "x" * 1_000_000}}
    body = {"messages": [{"role": "user", "content": [image]}]}
    async with answering(OK) as blind, answering(OK) as seeing:
        units = (
            target("m", blind.port, start="demand"),
            target("v", seeing.port, modalities=("text", "image")),
        )
        unit = front_unit(apis=ALL, max_body_bytes=1 << 24)
        front = Front(table(*units, front=unit, media={"image": "v"}), FakeFleet(m="stopped"))
        async with running(front) as port:
            answer = await ask(port, post(body, "/upstream/m/v1/chat/completions"))
    assert (answer.status, answer.headers["x-launch-server"]) == (200, "v")
