"""APIs of other programs that the front answers: llama.cpp's router, llama-swap, Ollama. I/O.

Each is answered by means of `Upstreams`; loading and unloading need the scope `admin` where keys are configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any
from urllib.parse import unquote

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.live import UnavailableError
from launcher.route import listing, ollama_api
from launcher.route.body import BIG_BYTES
from launcher.route.exchange import Exchange
from launcher.route.guard import changes_server
from launcher.route.head import Head
from launcher.route.loading import load, unavailable, unload
from launcher.route.peek import BOM
from launcher.route.pings import EVENTS
from launcher.route.problem import HttpError
from launcher.route.target import SERVING
from launcher.route.view import Route

_LOOK_S = 0.25
_OTHER_SITES = (b"cross-site", b"same-site")
_SWAP_STATES = {"ready": "ready", "sleeping": "ready", "starting": "starting", "backoff": "starting"}
"""States in the terms of llama-swap; servers in other states count as not running."""
_PATHS = {
    ("POST", "/models/load"): "llama_router",
    ("POST", "/models/unload"): "llama_router",
    ("GET", "/models/sse"): "llama_router",
    ("GET", "/running"): "llama_swap",
    ("GET", "/unload"): "llama_swap",
    ("POST", "/api/models/unload"): "llama_swap",
    ("GET", "/api/version"): "ollama",
    ("GET", "/api/tags"): "ollama",
    ("GET", "/api/ps"): "ollama",
    ("POST", "/api/show"): "ollama",
    ("POST", "/api/chat"): "ollama",
    ("POST", "/api/generate"): "ollama",
    ("POST", "/api/embed"): "ollama",
    ("POST", "/api/embeddings"): "ollama",
}
_UPSTREAM = "/upstream/"
_UNLOAD = "/api/models/unload/"


def api_of(method: str, path: str, apis: Collection[str]) -> str:
    """What answers this: one of `apis`, `upstream` for llama-swap's way to a named server, "" for none."""
    if path.startswith(_UPSTREAM):
        return "upstream" if "llama_swap" in apis else ""
    if method == "POST" and path.startswith(_UNLOAD):
        return "llama_swap" if "llama_swap" in apis else ""
    api = _PATHS.get(("GET" if method == "HEAD" else method, path), "")
    return api if api in apis else ""


class _Named(msgspec.Struct):
    """Body of `/models/load` and `/models/unload`."""

    model: str = ""


async def _router(exchange: Exchange) -> None:
    path = exchange.head.path
    if path == "/models/sse":
        await _tell_states(exchange)
        return
    try:
        name = msgspec.json.decode(exchange.body.removeprefix(BOM) or b"{}", type=_Named).model
    except UNREADABLE as error:
        raise HttpError(400, "invalid_json", f"the body must be a JSON object with `model`: {error}") from None
    if not name:
        raise HttpError(400, "model_required", "the request names no model", param="model")
    target = exchange.view.route(name).tiers[0][0]
    if path == "/models/load":
        load(exchange, target)
    else:
        await unload(exchange, target)
    exchange.answer(200, b"application/json", b'{"success":true}')


async def _tell_states(exchange: Exchange) -> None:
    """Stream the state of every model that the caller may ask for, then every change, until the client disconnects."""
    view, state_of, may_ask = exchange.view, exchange.services.upstreams.state, exchange.head.grant.may_ask
    exchange.begin(200, EVENTS % exchange.id, None)
    known: dict[str, str] = {}
    while not exchange.ended:
        for name in view.targets:
            status = listing.STATUS[state_of(name)]
            if may_ask(name, name) and known.get(name) != status:
                known[name] = status
                event = {"model": name, "event": "model_status", "data": {"status": status}}
                await exchange.write(b"data: " + msgspec.json.encode(event) + b"\n\n", done=False)
        await asyncio.sleep(_LOOK_S)


async def _swap(exchange: Exchange) -> None:
    head, view = exchange.head, exchange.view
    state_of, may_ask = exchange.services.upstreams.state, head.grant.may_ask
    if head.path == "/running":
        states = {name: _SWAP_STATES.get(state_of(name), "") for name in view.targets if may_ask(name, name)}
        running = [{"model": name, "state": state} for name, state in states.items() if state]
        exchange.answer(200, b"application/json", msgspec.json.encode({"running": running}))
        return
    if dict(head.forwarded).get(b"sec-fetch-site") in _OTHER_SITES:
        raise HttpError(403, "origin_not_allowed", "a page of another site may not unload models")
    if head.path.startswith(_UNLOAD):
        await unload(exchange, view.route(head.path.removeprefix(_UNLOAD)).tiers[0][0])
    else:
        head.grant.check_scope("admin")
        for target in view.targets.values():
            if target.unit.start == "demand" and state_of(target.name) in SERVING:
                await unload(exchange, target)
    exchange.answer(200, b"text/plain", b"OK")


def to_named_server(exchange: Exchange) -> None:
    """`/upstream/NAME/PATH`: let the server NAME answer PATH. Raises HttpError."""
    head, view = exchange.head, exchange.view
    parts = head.raw_path.split(b"/")  # a slash within a name may be written as %2F
    longest = 3 + max((name.count("/") for name in view.routes), default=0)
    names = {end: unquote(b"/".join(parts[2:end]).decode("ascii")) for end in range(longest, 2, -1)}
    end, name = next(((end, name) for end, name in names.items() if name in view.routes), (0, ""))
    if not name:
        view.route(head.path.removeprefix(_UPSTREAM).partition("/")[0])  # says which there are
        raise HttpError(404, "model_not_found", "no server of that name is known")
    if end >= len(parts):
        location = b"location: " + head.raw_path + b"/\r\n"
        exchange.answer(301, b"text/plain", b"", location)
        return
    url = b"/" + b"/".join(parts[end:]) + (b"?" + head.query if head.query else b"")
    inner = Head(head.method, url, head.version, head.headers, keep_alive=head.keep_alive)
    inner.grant, inner.cors, inner.purpose = head.grant, head.cors, "forward"
    if changes_server(inner):
        inner.grant.check_scope("admin")
    exchange.head = inner
    if len(exchange.body) > BIG_BYTES:
        exchange.run(_start_big, exchange, view.routes[name])
    else:
        exchange.start(view.routes[name])


async def _start_big(exchange: Exchange, route: Route) -> None:
    """Another process reads what has to be known of a big body."""
    read = exchange.services.body_reader.model
    _, exchange.beginning, exchange.media = await read(exchange.body, exchange.head.content_type, b"", None)
    exchange.start(route)


async def _ollama(exchange: Exchange) -> None:
    """Answer a request of Ollama's API, with errors in its format."""
    try:
        await ollama_api.answer(exchange)
    except UnavailableError as error:
        ollama_api.refuse(exchange, unavailable(error))
    except HttpError as error:
        ollama_api.refuse(exchange, error)


ANSWERS: dict[str, Callable[[Exchange], Coroutine[Any, Any, None]]] = {
    "llama_router": _router,
    "llama_swap": _swap,
    "ollama": _ollama,
}
"""By what a request is for: who answers it."""
