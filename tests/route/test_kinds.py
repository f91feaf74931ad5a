"""Requests that name no usable model go to who can answer them; a chat with images to who sees."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.errors import ConfigError
from launcher.route import Front
from launcher.route.media import media_in
from tests.route.fleet import OK, FakeFleet, answering, ask, front_unit, post, running, table, target
from tests.tinymodels.picture import png

pytestmark = pytest.mark.timeout(300)
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PICTURE: dict[str, Any] = {"type": "image_url", "image_url": {"url": png(8, 8)}}


def chat(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A chat whose one message has these parts."""
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 2, **more}


async def test_defaults_by_kind() -> None:
    """Embeddings and reranking without a model, or with an empty one, go to who does them; the rest to the default."""
    async with answering(OK) as up:
        units = [target(name, up.port) for name in ("chat", "embed", "rank", "fim")]
        defaults = {"embedding": "embed", "rerank": "rank", "infill": "fim"}
        async with running(Front(table(*units, defaults=defaults), FakeFleet())) as port:
            paths = ("/v1/embeddings", "/embedding", "/v1/rerank", "/infill", "/v1/completions", "/tokenize")
            plain = [await ask(port, post({}, path)) for path in paths]
            empty = await ask(port, post({"model": ""}, "/infill"))
            named = await ask(port, post({"model": "chat"}, "/v1/embeddings"))
            unknown = await ask(port, post({"model": "gpt"}, "/v1/embeddings"))
    assert [a.headers["x-launch-server"] for a in plain] == ["embed", "embed", "rank", "fim", "chat", "chat"]
    assert [a.headers["x-launch-server"] for a in (empty, named)] == ["fim", "chat"]
    assert unknown.code == "model_not_found"


async def test_an_unknown_model_can_mean_the_default() -> None:
    """For clients of one llama-server, which ignores the name; looking one up still says that there is none."""
    async with answering(OK) as up:
        units = [target("chat", up.port), target("embed", up.port)]
        routes = table(*units, unknown_model="default", defaults={"embedding": "embed"})
        async with running(Front(routes, FakeFleet())) as port:
            answers = [await ask(port, post({"model": "gpt-4"}, p)) for p in ("/v1/completions", "/v1/embeddings")]
            looked = await ask(port, b"GET /v1/models/gpt-4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with running(Front(table(*units, unknown_model="default", default=None), FakeFleet())) as port:
            nobody = await ask(port, post({"model": "gpt-4"}))
    assert [a.headers["x-launch-server"] for a in answers] == ["chat", "embed"]
    assert looked.code == nobody.code == "model_not_found"


@pytest.mark.parametrize("changes", [{"defaults": {"rerank": "nope"}}, {"media": {"image": "nope"}}])
def test_a_default_that_leads_nowhere(changes: dict[str, Any]) -> None:
    """As any dangling name of a table."""
    with pytest.raises(ConfigError) as refused:
        Front(table(target("a", 1), **changes), FakeFleet())
    assert refused.value.findings[0].code == "route/dangling-name"


async def test_a_picture_goes_to_who_sees() -> None:
    """Refused by its own server it goes where the routing says, or the reason is given; nobody is woken to refuse."""
    async with answering(REFUSAL) as blind, answering(OK) as seeing:
        units = (
            target("text", blind.port),
            target("sleeper", blind.port, start="demand"),
            target("eyes", seeing.port, roles=("vision",), modalities=("text", "image")),
        )
        fleet = FakeFleet(sleeper="stopped")
        picture = chat(PICTURE, model="text")
        async with running(Front(table(*units, media={"image": "vision"}, default=None), fleet)) as port:
            moved = await ask(port, post(picture))
            asleep = await ask(port, post(chat(PICTURE, model="sleeper")))
            failed = await ask(port, post(chat({"type": "text", "text": '"image_url"'}, model="text")))
            spoken = await ask(port, post(chat({"type": "input_audio", "input_audio": {}}, model="text")))
        async with running(Front(table(*units), fleet)) as port:
            refused = await ask(port, post(picture | {"model": "sleeper"}))
            default = await ask(port, post(chat(PICTURE)))
            counted = dict(fleet.in_flight)
    assert [a.headers["x-launch-server"] for a in (moved, asleep, default)] == ["eyes", "eyes", "eyes"]
    assert json.loads(seeing.requests[0].body) == picture
    assert (failed.status, failed.headers["x-launch-server"]) == (500, "text")
    assert (spoken.status, spoken.code) == (400, "modality_not_supported")
    assert (refused.status, refused.code) == (400, "modality_not_supported")
    assert "eyes can" in refused.json()["error"]["message"]
    assert (fleet.woken, set(counted.values())) == ([], {0})


async def test_who_only_embeds_writes_no_text() -> None:
    """A chat to it is the client's mistake: said once it refused, and before it is woken for nothing."""
    async with answering(REFUSAL) as refusing, answering(OK) as fine:
        units = (
            target("up", refusing.port, embedding=True),
            target("sleeper", refusing.port, embedding=True, start="demand"),
            target("embeds", fine.port, embedding=True),
        )
        fleet = FakeFleet(sleeper="stopped")
        async with running(Front(table(*units, default=None), fleet)) as port:
            paths = ("/v1/chat/completions", "/v1/completions", "/infill", "/v1/responses", "/v1/messages")
            refused = [await ask(port, post({"model": "up"}, path)) for path in paths]
            asleep = await ask(port, post(chat(model="sleeper")))
            failed = await ask(port, post({"model": "up", "input": "x"}, "/v1/embeddings"))
            done = await ask(port, post({"model": "embeds", "input": "x"}, "/v1/embeddings"))
            counted = dict(fleet.in_flight)
    assert {(a.status, a.code) for a in (*refused, asleep)} == {(400, "modality_not_supported")}
    assert (failed.status, done.status) == (500, 200)
    assert (fleet.woken, set(counted.values())) == ([], {0})


async def test_a_real_server_that_does_not_see(llama: int) -> None:
    """llama-server's own refusal becomes one with a code."""
    routes = table(target("m", llama), target("n", llama), front=front_unit())
    async with running(Front(routes, FakeFleet())) as port:
        refused = await ask(port, post(chat(PICTURE, {"type": "text", "text": "what?"}, model="n")))
        answered = await ask(port, post(chat({"type": "text", "text": "Hello"}, model="n")))
    assert (refused.status, refused.code, answered.status) == (400, "modality_not_supported", 200)


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (chat(PICTURE), {"image"}),
        (chat({"type": "text", "text": '{"type":"image_url"}'}), set()),
        (chat({"type": "tool_result", "content": [{"type": "image", "source": {}}]}), {"image"}),
        ({"input": [{"type": "message", "content": [{"type": "input_image", "image_url": "x"}]}]}, {"image"}),
        ({"input": "text"}, set()),
        (chat(PICTURE, {"type": "input_audio", "input_audio": {}}), {"image", "audio"}),
        ({"messages": "nonsense"}, set()),
        ({"messages": [{"content": None}]}, set()),
    ],
)
def test_media_of_a_chat(body: dict[str, Any], media: set[str]) -> None:
    """Content parts are looked at, text is not."""
    assert media_in(json.dumps(body).encode()) == media
    assert media_in(b"\xef\xbb\xbf" + json.dumps(body).encode()) == media
