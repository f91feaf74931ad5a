"""Requests that the front answers itself, from memory, by path. Waits for nothing and starts no server. I/O-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from launcher.route import listing, pages
from launcher.route.exchange import Exchange
from launcher.route.peek import query_model

_CSP = b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"


class Page(NamedTuple):
    """The function that answers a path (GET and HEAD). It may raise HttpError."""

    answer: Callable[[Exchange], None]
    is_open: bool = False
    """Whether callers need no key: probes have none."""


def local_page(path: str) -> Page | None:
    """The page at `path`; None: a server answers it."""
    if path.startswith(("/v1/models/", "/models/")):
        return PAGES["/models"] if path.rstrip("/").endswith("/models") else _MODEL
    return PAGES.get(path)


def _json(exchange: Exchange, value: object, status: int = 200) -> None:
    exchange.answer(status, b"application/json", msgspec.json.encode(value))


def _home(exchange: Exchange) -> None:
    unit, state_of = exchange.view.table.front, exchange.services.upstreams.state
    host = exchange.head.seen.get(b"host", b"").decode("latin-1") or f"{unit.host}:{unit.port}"
    url = f"{getattr(exchange.client, 'scheme', 'http')}://{host}"
    page = pages.home_page(exchange.view.table, state_of, url, exchange.head.grant.may_ask)
    exchange.answer(200, b"text/html; charset=utf-8", page.encode(), _CSP)


def _health(exchange: Exchange) -> None:
    _json(exchange, {"status": "ok"})


def _ready(exchange: Exchange) -> None:
    waiting = pages.not_ready(exchange.view.table, exchange.services.upstreams.state)
    if exchange.view.guard.has_keys:  # whoever asks showed none
        waiting = [{"state": entry["state"]} for entry in waiting]
    _json(exchange, {"ready": not waiting, "waiting": waiting}, 503 if waiting else 200)


def _metrics(exchange: Exchange) -> None:
    front = exchange.services
    text = pages.metrics_text(exchange.view.targets, front.upstreams.state, front.refused, front.escalations)
    content = (text + front.other_metrics()).encode()
    exchange.answer(200, b"text/plain; version=0.0.4; charset=utf-8", content)


def _models(exchange: Exchange) -> None:
    view, front, may_ask = exchange.view, exchange.services, exchange.head.grant.may_ask
    _json(exchange, listing.models_list(view.table, front.upstreams.state, front.created, view.orchestrated, may_ask))


def _model(exchange: Exchange) -> None:
    view, front, grant = exchange.view, exchange.services, exchange.head.grant
    name = exchange.head.path.partition("/models/")[2]
    if name in view.orchestrated and grant.may_ask(name, name):
        _json(exchange, listing.auto_entry(name, front.created))
        return
    unit = view.route(name).tiers[0][0].unit
    grant.check_model(name, unit.name)
    listed = (*unit.faces, *(unit.aliases if view.table.front.list_aliases else ()))
    shown = name if name in listed else ""
    _json(exchange, listing.model_entry(unit, front.upstreams.state(unit.name), front.created, shown))


def answer_props(exchange: Exchange) -> bool:
    """Answer `/props` if no server can; returns whether it was answered. Raises HttpError."""
    view, head = exchange.view, exchange.head
    name = query_model(head.query) or head.seen.get(b"x-model", b"").decode("latin-1").strip()
    if not name and (len(view.targets) == 1 or b"x-task-type" in head.seen):
        return False
    unit = view.route(name).tiers[0][0].unit if name else None
    if unit is not None and not head.grant.may_ask(name, unit.name):
        return False  # the exchange says so
    state = "ready" if unit is None else exchange.services.upstreams.state(unit.name)
    data = listing.local_props(view.table, unit, state)
    if data is not None:
        exchange.answer(200, b"application/json", data)
    return data is not None


PAGES: dict[str, Page] = {
    "/": Page(_home),
    "/health": Page(_health, is_open=True),
    "/v1/health": Page(_health, is_open=True),
    "/ready": Page(_ready, is_open=True),
    "/metrics": Page(_metrics),
    "/models": Page(_models),
    "/v1/models": Page(_models),
}
_MODEL = Page(_model)
