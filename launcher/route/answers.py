"""What the front answers itself, from memory: one row a path. Nothing is waited for, and nobody is woken. I/O-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from launcher.ir.live import Upstreams
from launcher.route import listing, pages
from launcher.route.exchange import Exchange
from launcher.route.peek import query_model
from launcher.route.problem import HttpError

_CSP = b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"


class Known(Protocol):
    """What the front knows of itself; the table and who asks are the exchange's."""

    upstreams: Upstreams
    refused: Counter[str]
    escalations: Counter[tuple[str, str, str]]
    created: int
    """When it began (Unix time)."""

    def other_metrics(self) -> str:
        """Prometheus text of those beside it."""


class Page(NamedTuple):
    """How a path is answered (GET and HEAD). Raises HttpError."""

    answer: Callable[[Known, Exchange], None]
    is_open: bool = False
    """To anybody, key or not: probes show none."""


def page_of(path: str) -> Page | None:
    """The page at `path`; None: a server answers that."""
    if path.startswith(("/v1/models/", "/models/")):
        return PAGES["/models"] if path.rstrip("/").endswith("/models") else _MODEL
    return PAGES.get(path)


def _json(exchange: Exchange, value: object, status: int = 200) -> None:
    exchange.answer(status, b"application/json", msgspec.json.encode(value))


def _home(known: Known, exchange: Exchange) -> None:
    unit = exchange.view.table.front
    host = exchange.head.seen.get(b"host", b"").decode("latin-1") or f"{unit.host}:{unit.port}"
    url = f"{getattr(exchange.client, 'scheme', 'http')}://{host}"
    page = pages.home_page(exchange.view.table, known.upstreams.state, url, exchange.head.grant.may_ask)
    exchange.answer(200, b"text/html; charset=utf-8", page.encode(), _CSP)


def _health(_: Known, exchange: Exchange) -> None:
    _json(exchange, {"status": "ok"})


def _ready(known: Known, exchange: Exchange) -> None:
    waiting = pages.not_ready(exchange.view.table, known.upstreams.state)
    if exchange.view.guard.has_keys:  # whoever asks showed none
        waiting = [{"state": entry["state"]} for entry in waiting]
    _json(exchange, {"ready": not waiting, "waiting": waiting}, 503 if waiting else 200)


def _metrics(known: Known, exchange: Exchange) -> None:
    text = pages.metrics_text(exchange.view.targets, known.upstreams.state, known.refused, known.escalations)
    content = (text + known.other_metrics()).encode()
    exchange.answer(200, b"text/plain; version=0.0.4; charset=utf-8", content)


def _models(known: Known, exchange: Exchange) -> None:
    view, may_ask = exchange.view, exchange.head.grant.may_ask
    _json(exchange, listing.models_list(view.table, known.upstreams.state, known.created, view.auto, may_ask))


def _model(known: Known, exchange: Exchange) -> None:
    view, may_ask = exchange.view, exchange.head.grant.may_ask
    name = exchange.head.path.partition("/models/")[2]
    if name in view.auto and may_ask(name, name):
        _json(exchange, listing.auto_entry(name, known.created))
        return
    unit = view.route(name).tiers[0][0].unit
    if not may_ask(name, unit.name):
        raise HttpError(403, "model_not_allowed", f"this API key may not ask for {name!r}")
    listed = (*unit.faces, *(unit.aliases if view.table.front.list_aliases else ()))
    shown = name if name in listed else ""
    _json(exchange, listing.model_entry(unit, known.upstreams.state(unit.name), known.created, shown))


def answer_props(known: Known, exchange: Exchange) -> bool:
    """Answer `/props` where no server can, and say whether it was. Raises HttpError."""
    view, head = exchange.view, exchange.head
    name = query_model(head.query) or head.seen.get(b"x-model", b"").decode("latin-1").strip()
    if not name and (len(view.targets) == 1 or b"x-task-type" in head.seen):
        return False
    unit = view.route(name).tiers[0][0].unit if name else None
    if unit is not None and not head.grant.may_ask(name, unit.name):
        return False  # the exchange says so
    data = listing.props(view.table, unit, known.upstreams.state(unit.name) if unit is not None else "ready")
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
