"""What the front answers in the place of other programs: llama.cpp's router, llama-swap, Ollama. I/O.

Each answers by what `Upstreams` knows and does; what loads or unloads needs the scope `admin` where keys are asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.live import UnavailableError
from launcher.route import listing, ollama_api
from launcher.route.access import changes_server
from launcher.route.apis import UNLOAD, UPSTREAM
from launcher.route.exchange import Exchange
from launcher.route.head import Head
from launcher.route.loading import load, unavailable, unload
from launcher.route.pings import EVENTS
from launcher.route.problem import HttpError
from launcher.route.services import Services
from launcher.route.target import SERVING

_LOOK_S = 0.25
_OTHER_SITES = (b"cross-site", b"same-site")
_SWAP_STATES = {"ready": "ready", "sleeping": "ready", "starting": "starting", "backoff": "starting"}
"""A state as llama-swap calls it; the others do not run."""


class _Named(msgspec.Struct):
    """The body of `/models/load` and `/models/unload`."""

    model: str = ""


async def _router(services: Services[Exchange], exchange: Exchange, _: int) -> None:
    path = exchange.head.path
    if path == "/models/sse":
        await _tell_states(services, exchange)
        return
    try:
        name = msgspec.json.decode(exchange.body or b"{}", type=_Named).model
    except UNREADABLE as error:
        raise HttpError(400, "invalid_json", f"the body must be a JSON object with `model`: {error}") from None
    target = exchange.view.route(name).tiers[0][0] if name else None
    if target is None:
        raise HttpError(400, "model_required", "the request names no model", param="model")
    if path == "/models/load":
        load(services, exchange, target)
    else:
        await unload(services, exchange, target)
    exchange.answer(200, b"application/json", b'{"success":true}')


async def _tell_states(services: Services[Exchange], exchange: Exchange) -> None:
    """Events about every model that the caller may ask for: what it is now, then what changes, until he leaves."""
    view, may_ask = exchange.view, exchange.head.grant.may_ask
    exchange.begin(200, EVENTS % exchange.id, None)
    known: dict[str, str] = {}
    while not exchange.ended:
        for name in view.targets:
            status = listing.status_of(services.upstreams.state(name))
            if may_ask(name, name) and known.get(name) != status:
                known[name] = status
                event = {"model": name, "event": "model_status", "data": {"status": status}}
                await exchange.write(b"data: " + msgspec.json.encode(event) + b"\n\n", done=False)
        await asyncio.sleep(_LOOK_S)


async def _swap(services: Services[Exchange], exchange: Exchange, _: int) -> None:
    head, view = exchange.head, exchange.view
    state_of, may_ask = services.upstreams.state, head.grant.may_ask
    if head.path == "/running":
        states = {name: _SWAP_STATES.get(state_of(name), "") for name in view.targets if may_ask(name, name)}
        running = [{"model": name, "state": state} for name, state in states.items() if state]
        exchange.answer(200, b"application/json", msgspec.json.encode({"running": running}))
        return
    if dict(head.forwarded).get(b"sec-fetch-site") in _OTHER_SITES:
        raise HttpError(403, "origin_not_allowed", "a page of another site may not unload models")
    if head.path.startswith(UNLOAD):
        await unload(services, exchange, view.route(head.path.removeprefix(UNLOAD)).tiers[0][0])
    else:
        exchange.head.grant.check_scope("admin")
        for target in view.targets.values():
            if target.unit.start == "demand" and state_of(target.name) in SERVING:
                await unload(services, exchange, target)
    exchange.answer(200, b"text/plain", b"OK")


def to_named_server(exchange: Exchange) -> None:
    """`/upstream/NAME/PATH`: have the server NAME answer PATH. Raises HttpError."""
    head, view = exchange.head, exchange.view
    rest = head.path.removeprefix(UPSTREAM)
    name = next((n for n in sorted(view.routes, key=len, reverse=True) if rest == n or rest.startswith(f"{n}/")), None)
    if name is None:
        view.route(rest.partition("/")[0])  # says which there are
        raise HttpError(404, "model_not_found", "no server of that name is known")
    if rest == name:
        location = b"location: " + head.raw_path + b"/\r\n"
        exchange.answer(301, b"text/plain", b"", location)
        return
    raw = head.raw_path.split(b"/", 3 + name.count("/"))[-1]
    url = b"/" + raw + (b"?" + head.query if head.query else b"")
    inner = Head(head.method, url, head.version, head.headers, keep_alive=head.keep_alive)
    inner.grant, inner.cors, inner.purpose = head.grant, head.cors, "forward"
    if changes_server(inner):
        inner.grant.check_scope("admin")
    exchange.head = inner
    exchange.start(view.routes[name])


async def _ollama(services: Services[Exchange], exchange: Exchange, created: int) -> None:
    """Ollama, whose errors are a sentence."""
    try:
        await ollama_api.answer(services, exchange, created)
    except UnavailableError as error:
        ollama_api.refuse(exchange, unavailable(error))
    except HttpError as error:
        ollama_api.refuse(exchange, error)


ANSWERS: dict[str, Callable[[Services[Exchange], Exchange, int], Coroutine[Any, Any, None]]] = {
    "llama_router": _router,
    "llama_swap": _swap,
    "ollama": _ollama,
}
"""By what a request is for: who answers it, given when the front began (Unix time)."""
