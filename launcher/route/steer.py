"""Requests about a running generation: sent to the server that has it; they start no server. I/O.

Only the process that generates can answer them: another one does not know the generation, and its 204 would mean
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.exchange import Refusal
from launcher.route.endpoint import CONTROL, LOOKUP
from launcher.route.exchange import Exchange
from launcher.route.handover import hand_over
from launcher.route.owners import Owner, Owners
from launcher.route.peek import BOM
from launcher.route.problem import HttpError
from launcher.route.question import Question, ask
from launcher.route.target import SERVING
from launcher.route.view import Route

T = TypeVar("T", bound=msgspec.Struct)

_LOOKUP_S = 10.0
_MODEL_MARK = b"::"
"""llama.cpp's web UI appends the model's name to the id, after this, when it talks to a router."""


class _Control(msgspec.Struct, frozen=True):
    id: str = ""


class _Lookup(msgspec.Struct, frozen=True):
    conversation_ids: list[str] = []


def steer(exchange: Exchange, model: str | None) -> None:
    """Send a request about a generation to its server; `model`: the name in the request. Raises HttpError."""
    services, head = exchange.services, exchange.head
    if head.path == LOOKUP:
        wanted = _decoded(exchange.body, _Lookup).conversation_ids
        hand_over(exchange, _look_up, exchange, wanted)
        return
    if head.path == CONTROL:
        what, key, known = "completion", _decoded(exchange.body, _Control).id.encode(), services.completions
    else:
        what, key, known = "conversation", _conversation_of(head.query), services.conversations
    if not key:
        raise HttpError(400, f"{what}_required", f"the request names no {what}", param="id")
    owner = _owner(exchange, known, key, model)
    if owner is None or services.upstreams.state(owner.server) not in SERVING:
        message = (
            f"no server of this fleet has that {what}, or not any more; name its model, if it is older than the front"
        )
        raise HttpError(404, f"{what}_not_found", message)
    exchange.start(_route(exchange, owner), granted=owner.asked)


def _owner(exchange: Exchange, known: Owners, key: bytes, model: str | None) -> Owner | None:
    """The server of a generation: as remembered, otherwise the only server of the model named."""
    view, caller = exchange.view, exchange.head.grant.name
    owner = known.of(key, caller)
    if owner is not None and owner.server in view.targets:
        return owner
    name = model or key.partition(_MODEL_MARK)[2].decode("utf-8", "replace")
    if not name:
        return None
    servers = view.route(name).tiers[0]
    return Owner(servers[0].name, name, caller) if len(servers) == 1 else None


def _route(exchange: Exchange, owner: Owner) -> Route:
    target = exchange.view.targets[owner.server]
    return Route(owner.server, ((target,),), {target.name: exchange.view.directory.timeout_s(owner.asked, target.unit)})


async def _look_up(exchange: Exchange, wanted: Iterable[str]) -> None:
    """Ask every server that has some of `wanted` for their streams; answer with all that they report."""
    services, view, grant = exchange.services, exchange.view, exchange.head.grant
    ids: dict[Owner, list[str]] = {}
    for conversation in dict.fromkeys(wanted):
        owner = services.conversations.of(conversation.encode(), grant.name)
        if owner is not None and owner.server in view.targets and services.upstreams.state(owner.server) in SERVING:
            ids.setdefault(owner, []).append(conversation)

    async def found(owner: Owner, some: list[str]) -> list[msgspec.Raw]:
        """The report of one server; [] if it fails."""
        body = msgspec.json.encode({"conversation_ids": some})
        route = _route(exchange, owner)
        question = Question(
            path=LOOKUP,
            body=body,
            request_id=exchange.id,
            grant=grant,
            granted=owner.asked,
            route=route,
        )
        try:
            answer = await ask(services, owner.server, question, timeout_s=_LOOKUP_S)
            return msgspec.json.decode(answer.body, type=list[msgspec.Raw]) if answer.status == 200 else []
        except (Refusal, TimeoutError, msgspec.DecodeError):
            return []

    parts = await asyncio.gather(*(found(owner, some) for owner, some in ids.items()))
    exchange.answer(200, b"application/json", msgspec.json.encode([entry for part in parts for entry in part]))


def _conversation_of(query: bytes) -> bytes:
    return parse_qs(query.decode("latin-1"), encoding="utf-8", errors="replace").get("conv_id", [""])[0].encode()


def _decoded(body: bytes, kind: type[T]) -> T:
    """The JSON body as `kind`. Raises HttpError 400."""
    try:
        return msgspec.json.decode(body.removeprefix(BOM) or b"{}", type=kind)
    except UNREADABLE as error:
        raise HttpError(400, "invalid_json", f"the body is not what is expected here: {error}") from None
