"""Answers requests of Ollama's API by the fleet's servers. I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from launcher.route import ollama
from launcher.route.body import BIG_BYTES
from launcher.route.exchange import Exchange
from launcher.route.loading import load, unload
from launcher.route.ollama import OllamaAnswer, OllamaRequest
from launcher.route.problem import HttpError, unexpected_answer
from launcher.route.question import Question, ask, relayed
from launcher.route.reader import too_large
from launcher.route.target import SERVING
from launcher.route.view import Route

_JSON = b"application/json; charset=utf-8"
_LINES = b"content-type: application/x-ndjson\r\nx-request-id: %b\r\n"
_EMBEDDING_S = 600.0


async def answer(exchange: Exchange) -> None:
    """Answer a request below `/api/`. Raises HttpError."""
    path = exchange.head.path
    if path in ("/api/version", "/api/tags", "/api/ps"):
        _whole(exchange, _about(exchange, path))
        return
    if len(exchange.body) > BIG_BYTES:
        raise too_large(BIG_BYTES, "of this API; /v1/chat/completions takes more")
    asked = ollama.parse_request(exchange.body)
    route = _route(exchange, asked)
    if path == "/api/show":
        _whole(exchange, ollama.show_answer(route.tiers[0][0].unit))
    elif path in ("/api/embed", "/api/embeddings"):
        await _embed(exchange, asked, route)
    else:
        await _generate(exchange, asked, route)


def refuse(exchange: Exchange, error: HttpError) -> None:
    """Send an error in the format of Ollama's API; in a stream, as its last line."""
    if exchange.ended:  # the answer is out, and what is written now would be part of the next one
        return
    data = msgspec.json.encode({"error": error.message, "code": error.code})
    if exchange.started:
        exchange.client.write(data + b"\n", True)
        exchange.finish(error.code)
    else:
        retry = b"" if error.retry_after is None else b"retry-after: %b\r\n" % error.retry_after
        exchange.answer(error.status, _JSON, data, retry)


def _whole(exchange: Exchange, value: dict[str, Any]) -> None:
    exchange.answer(200, _JSON, msgspec.json.encode(value))


def _about(exchange: Exchange, path: str) -> dict[str, Any]:
    if path == "/api/version":
        return {"version": ollama.VERSION}
    front, targets, may_ask = exchange.services, exchange.view.table.targets, exchange.head.grant.may_ask
    names = [(name, unit) for server, unit in targets.items() for name in (unit.id or server, *unit.faces)]
    if path == "/api/ps":
        names = [(name, unit) for name, unit in names if front.upstreams.state(unit.name) in SERVING]
    return {"models": [ollama.model_entry(n, unit, front.created) for n, unit in names if may_ask(n, unit.name)]}


def _route(exchange: Exchange, asked: OllamaRequest) -> Route:
    """The route of a model; `:latest` may be left out, or added to any name. Raises HttpError 404, 403."""
    view = exchange.view
    name = asked.model
    if name not in view.routes:
        name = name.removesuffix(":latest")
    route = view.route(name)
    exchange.head.grant.check_model(name, route.tiers[0][0].name)
    return route


async def _generate(exchange: Exchange, asked: OllamaRequest, route: Route) -> None:
    is_chat = exchange.head.path == "/api/chat"
    if asked.suffix:
        raise HttpError(400, "suffix_not_supported", "text is filled in by POST /infill, not here")
    target, said = route.tiers[0][0], OllamaAnswer(asked, is_chat=is_chat)
    if not (asked.messages if is_chat else asked.prompt or asked.images):
        if asked.unloads_after:
            await unload(exchange, target)
        else:
            load(exchange, target)
        _whole(exchange, said.ended("unload" if asked.unloads_after else "load"))
        return
    is_raw = bool(asked.raw) and not is_chat
    body = ollama.raw_body(asked) if is_raw else ollama.chat_body(asked)
    path = "/v1/completions" if is_raw else "/v1/chat/completions"
    data = msgspec.json.encode(body)
    question = Question(path=path, body=data, request_id=exchange.id, grant=exchange.head.grant)
    async for part in _parts(exchange, route, question, said):
        if asked.stream is False:
            _whole(exchange, part)
            continue
        if not exchange.started:
            exchange.begin(200, _LINES % exchange.id, None)
        await exchange.write(msgspec.json.encode(part) + b"\n", done=part["done"])
    if asked.unloads_after and target.unit.start == "demand":
        await unload(exchange, target)


async def _parts(
    exchange: Exchange, route: Route, question: Question, said: OllamaAnswer
) -> AsyncIterator[dict[str, Any]]:
    """The parts of an answer, the last one `done`. Raises HttpError."""
    refused, status = b"", 200
    async for status, data in relayed(exchange, route, question):
        if status != 200:
            refused += data
            continue
        for part in said.feed(data):
            yield part
    if status != 200:
        raise unexpected_answer(status, refused)
    yield said.last()


async def _embed(exchange: Exchange, asked: OllamaRequest, route: Route) -> None:
    is_old = exchange.head.path == "/api/embeddings"
    body: dict[str, Any] = {"model": asked.model, "input": asked.prompt if is_old else asked.input}
    if asked.dimensions is not None:
        body["dimensions"] = asked.dimensions
    if not body["input"]:
        _whole(exchange, {"embedding": []} if is_old else {"model": asked.model, "embeddings": []})
        return
    question = Question(
        path="/v1/embeddings",
        body=msgspec.json.encode(body),
        request_id=exchange.id,
        grant=exchange.head.grant,
        route=route,
    )
    answered = await ask(exchange.services, route.name, question, timeout_s=_EMBEDDING_S, payer=exchange)
    if answered.status != 200:
        raise unexpected_answer(answered.status, answered.body)
    vectors, tokens = ollama.embeddings(answered.body)
    texts = 1 if is_old or isinstance(asked.input, str) else len(asked.input)
    if len(vectors) < texts:
        raise HttpError(502, "upstream_garbage", f"the server answered with {len(vectors)} vectors")
    if is_old:
        _whole(exchange, {"embedding": vectors[0]})
    else:
        _whole(exchange, {"model": asked.model, "embeddings": vectors, "prompt_eval_count": tokens})
