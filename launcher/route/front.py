"""The front: who may ask, what is answered from memory, and where everything else goes. I/O."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.base.background import BackgroundHandler
from launcher.ir.exchange import Orchestrating
from launcher.ir.fleet import FrontUnit, RoutingTable
from launcher.ir.live import Upstreams
from launcher.ir.page import Request
from launcher.route.answers import answer_props, local_page
from launcher.route.body import BIG_BYTES
from launcher.route.body_reader import BodyReader
from launcher.route.clients import Clients
from launcher.route.endpoint import steers
from launcher.route.exchange import Exchange
from launcher.route.expansion import Expansion
from launcher.route.faults import Faults
from launcher.route.guard import Guard, check_control, granted, is_control, is_for_people, is_same_origin
from launcher.route.handover import Handover, hand_over
from launcher.route.head import Head, cors_lines
from launcher.route.identity import check_identity
from launcher.route.journal import open_journal
from launcher.route.keys import ALLOW_ALL, Grant
from launcher.route.media import media_in, require_text, takes_media
from launcher.route.other_apis import ANSWERS, api_of, to_named_server
from launcher.route.owners import Owners
from launcher.route.peek import peek, peek_json
from launcher.route.problem import HttpError
from launcher.route.rate_limits import Limits, Usage
from launcher.route.reader import too_large
from launcher.route.reply import Reply
from launcher.route.requests import Requests, is_shown, live
from launcher.route.sessions import Sessions
from launcher.route.steer import steer
from launcher.route.sticky import Sticky
from launcher.route.target import Target, control_target
from launcher.route.upstream import Connection
from launcher.route.view import Route, View, view_of

_LOG = logging.getLogger("launch.route")
_ACCESS = logging.getLogger("launch.access")
_GENERATIONS = "/v1/generations/"


class Front:
    """The data plane of one fleet; implements `launcher.route.services.Services`.

    Raises ConfigError or HostError for a table that cannot be served safely.
    """

    def __init__(
        self,
        table: RoutingTable,
        upstreams: Upstreams,
        *,
        control: Path | None = None,
        orchestrator: Orchestrating | None = None,
    ) -> None:
        """`control`: path of the unix socket behind `/v1/launch/` and `/ui/`, for clients on this machine only.

        `orchestrator` serves by the same table, and answers what no single server can.
        """
        self.more_metrics: Callable[[], str] = str
        """Prometheus text of whoever runs the servers, for /metrics."""
        self.upstreams = upstreams
        self.sticky = Sticky()
        self.requests = Requests()
        self.note = self.requests.note
        self.sessions = Sessions()
        self.sessions.cookie = f"launch-{table.front.port}"
        self.conversations = Owners()
        self.completions = Owners()
        self._usage: dict[bytes, Usage] = {}
        """Of keys with limits, by digest: reading the key file again keeps it for unchanged keys."""
        self.refused: Counter[str] = Counter()  # answered with an error of the front, by its code
        self.escalations: Counter[tuple[str, str, str]] = Counter()
        self._orchestrator = orchestrator
        self._control = None if control is None else control_target(control)
        self.expansion = Expansion()
        self.created = int(time.time())
        self.faults = Faults(self)
        self.body_reader = BodyReader()
        self.view = view_of(table, {}, orchestrator, self._check_identity)
        self._journal = open_journal(table.front.journal_file)
        self.has_journal = self._journal is not None
        self.has_access_log = table.front.access_log
        self.clients = Clients(table.front, functools.partial(Exchange, self))
        self.clients.refused = self.refused

    def other_metrics(self) -> str:
        """Prometheus text of the orchestrator and of whoever runs the servers."""
        return ("" if self._orchestrator is None else self._orchestrator.metrics()) + self.more_metrics()

    @property
    def unit(self) -> FrontUnit:
        """Limits and address of the table that is served now."""
        return self.view.table.front

    def replace_table(self, table: RoutingTable) -> None:
        """Serve another table from the next request on; requests in flight finish with the old one.

        Raises like the constructor, and then keeps the old table.
        """
        old = self.view.targets
        orchestrator = self._orchestrator
        if orchestrator is not None:
            orchestrator.take_over(table)
        try:
            view = view_of(table, old, orchestrator, self._check_identity)
        except BaseException:
            if orchestrator is not None:
                orchestrator.take_over(self.view.table)
            raise
        if table.front.journal_file != self.unit.journal_file:
            journal, self._journal = self._journal, open_journal(table.front.journal_file)
            if journal is not None:
                journal.close()
        self.view = view
        self.has_journal = self._journal is not None
        self.has_access_log = table.front.access_log
        self.clients.unit = table.front
        self.faults.reset()
        for name, target in old.items():
            if view.targets.get(name) is not target:
                target.pool.close()

    def take_keys(self, guard: Guard) -> None:
        """Use `guard` from the next request on: keys that it does not have are refused."""
        self.view = msgspec.structs.replace(self.view, guard=guard)

    def fresh_clients(self) -> Clients:
        """Start a new set of clients for new connections; returns the old set."""
        old, self.clients = self.clients, Clients(self.unit, functools.partial(Exchange, self))
        self.clients.date, self.clients.refused = old.date, self.refused
        return old

    def close(self) -> None:
        """Close idle upstream connections and the orchestrator's; busy ones close when their requests end."""
        if self._orchestrator is not None:
            self._orchestrator.close()
        self.expansion.close()
        self.faults.close()
        self.body_reader.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
            self.has_journal = False
        for target in self.view.targets.values():
            target.pool.close()

    # --- what an exchange needs -------------------------------------------------------------------------------

    def open(self, exchange: Exchange) -> None:
        """Check who asks, and answer what needs no body. Raises HttpError."""
        head, view = exchange.head, exchange.view
        if head.checked is not view:
            self._check(head, view, exchange.client)
            if b"cookie" not in head.seen:  # a session may end before the next request with the same head
                head.checked = view
                head.passes = view if head.purpose == "forward" and head.grant.limits is None else None
        if head.grant.limits is not None and (head.takes_slot or head.purpose == "ollama"):
            self._spend(exchange, head.grant, head.grant.limits)
        if head.purpose == "preflight":
            exchange.answer(204, b"text/plain", b"", head.preflight())
        elif head.purpose == "page" and (page := local_page(head.path)) is not None:
            page.answer(exchange)
        elif head.purpose == "to_page":
            exchange.answer(303, b"text/plain", b"", b"location: /ui/\r\ncache-control: no-store\r\nvary: accept\r\n")
        elif head.purpose == "props" and answer_props(exchange):
            pass
        elif exchange.length is not None and int(exchange.length) > view.table.front.max_body_bytes:
            raise too_large(view.table.front.max_body_bytes)

    def _spend(self, exchange: Exchange, grant: Grant, limits: Limits) -> None:
        """Count the request against its key's limits. Raises HttpError 429."""
        usage = self._usage.get(grant.digest)
        if usage is None or usage.limits != limits:
            usage = self._usage[grant.digest] = Usage(limits, time.monotonic())
        usage.admit(time.monotonic())
        exchange.on_end = lambda: usage.ended(sum(exchange.tokens))

    def dispatch(self, exchange: Exchange) -> None:
        """Send the request, whose body has arrived, on its way. Raises HttpError."""
        head, body = exchange.head, exchange.body
        if head.purpose != "forward" and self._is_answered_otherwise(exchange):
            return
        if len(body) > BIG_BYTES:
            exchange.run(self._dispatch_big, exchange)
            return
        model = peek_json(body) if body and head.is_json else None
        if not model:
            model = peek(body, head.content_type, head.query, self._named(exchange))
        self._send(exchange, model, body)

    def _is_answered_otherwise(self, exchange: Exchange) -> bool:
        """Start answering a request that is not forwarded as it is. False: forward it. Raises HttpError."""
        purpose, orchestrator = exchange.head.purpose, self._orchestrator
        if purpose == "control" and self._control is not None:
            exchange.start_at(self._control)
        elif purpose == "report" and orchestrator is not None:
            hand_over(exchange, _report, orchestrator, exchange)
        elif purpose == "upstream":
            to_named_server(exchange)
        elif purpose in ANSWERS:
            hand_over(exchange, ANSWERS[purpose], exchange)
        else:
            return False
        return True

    async def _dispatch_big(self, exchange: Exchange) -> None:
        """`dispatch` for a big body, which the worker process reads."""
        head, body = exchange.head, exchange.body
        found = await self.body_reader.model(body, head.content_type, head.query, self._named(exchange))
        model, exchange.beginning, exchange.media = found
        is_decided = model in exchange.view.orchestrated and head.method == "POST" and self._orchestrator is not None
        self._send(exchange, model, await self.body_reader.outline(body) if is_decided else body)

    def _named(self, exchange: Exchange) -> bytes | None:
        """The model that the headers name."""
        seen = exchange.head.seen
        return exchange.view.directory.named(seen.get(b"x-model"), seen.get(b"x-task-type"))

    def _send(self, exchange: Exchange, model: str | None, body: bytes) -> None:
        """Start the servers' answer for `model`, or the orchestrator's, which reads `body`. Raises HttpError."""
        view, orchestrator = exchange.view, self._orchestrator
        exchange.named = model or ""
        if exchange.head.purpose == "steer":
            if len(body) > BIG_BYTES:
                raise too_large(BIG_BYTES, "for what is only looked up")
            steer(exchange, model)
            return
        if orchestrator is not None and model in view.orchestrated and exchange.head.method == "POST":
            hand_over(exchange, orchestrator.answer, Handover(exchange, model or "", body))
            return
        route = view.routes.get(model or "") or view.route(model, exchange.head.kind)
        if orchestrator is not None and self._is_handed_over(exchange, route, body):
            hand_over(exchange, orchestrator.answer, Handover(exchange, route.name, body))
        else:
            exchange.start(route)

    @staticmethod
    def _is_handed_over(exchange: Exchange, route: Route, body: bytes) -> bool:
        """Whether the orchestrator answers what `route` is asked. Raises HttpError."""
        seen = exchange.head.seen
        if route.is_validated or b"x-validation-policy" in seen:
            if len(body) > BIG_BYTES:
                raise too_large(BIG_BYTES, "for an answer that is validated")
            return True
        return b"x-project" in seen and len(body) <= BIG_BYTES

    def grow(self, route: Route) -> None:
        """Count a request by `route`: a busy pool gets another server."""
        self.expansion.consider(route.tiers[0], route.grows_above, self.upstreams)

    def route_for_media(self, exchange: Exchange, route: Route) -> Route | None:
        """The route for a chat with media that no server of `route` accepts; None: not needed. Raises HttpError."""
        require_text(route.name, route.lacks)
        found = media_in(exchange.body) if exchange.media is None else exchange.media
        lacking = found & route.lacks
        return exchange.view.routes[takes_media(exchange.view.table, route.name, lacking)] if lacking else None

    def note_attempt(self, exchange: Exchange, status: int, seconds: float, tokens: tuple[int, int]) -> None:
        """Write the journal entry of a request that was sent to a server."""
        if self._journal is not None and exchange.target is not None:
            self._journal.add(
                request=exchange.id.decode("ascii"),
                caller=exchange.head.grant.name,
                asked=exchange.asked,
                server=exchange.target.name,
                path=exchange.head.path,
                status=status,
                seconds=seconds,
                prompt_tokens=tokens[0],
                generated_tokens=tokens[1],
                decision=exchange.decision,
            )

    def running(self) -> list[Request]:
        """The requests that run or wait now."""
        return live(self._exchanges())

    def cancel(self, request_id: str) -> bool:
        """End the request with this id. Returns False if there is none."""
        found = [e for e in self._exchanges() if e.id.decode("ascii") == request_id and is_shown(e) and not e.ended]
        for exchange in found:
            exchange.cancel()
        return bool(found)

    def _exchanges(self) -> list[Exchange]:
        handlers = [handler for connection in self.clients.connections for handler in connection.handlers()]
        return [handler for handler in handlers if isinstance(handler, Exchange)]

    def note_answer(self, reply: Reply, status: int, code: str) -> None:
        """Count an answer's error code and write the access log."""
        if reply.is_question:
            return
        if code != "-":
            self.refused[code] += 1
        if self.unit.access_log:
            if not _ACCESS.handlers:
                _ACCESS.addHandler(BackgroundHandler())
                _ACCESS.setLevel(logging.INFO)
            head, milliseconds = reply.head, (time.monotonic() - reply.began) * 1000
            path = head.raw_path.decode("latin-1")  # as it came: decoded it could end the line
            request_id = reply.id.decode("ascii")
            _ACCESS.info("%s %s %s %d %s %.1f ms", request_id, head.method, path, status, code, milliseconds)

    async def _check_identity(self, target: Target, connection: Connection) -> None:
        """Check which server a fresh connection leads to. Raises UpstreamError."""
        await check_identity(self.upstreams, target, connection)

    # --- who may ask ------------------------------------------------------------------------------------------

    def _check(self, head: Head, view: View, client: object) -> None:
        """Find what a request with this head may do, and its purpose. Raises HttpError."""
        guard, seen = view.guard, head.seen
        host, origin = seen.get(b"host"), seen.get(b"origin")
        head.refuse_unusable()
        guard.check_host(host, head.version)
        is_control_path = self._control is not None and is_control(head.path)
        head.cors = b""
        if origin is not None:
            guard.check_origin(origin, host, same=is_control_path)
            head.cors = cors_lines(origin)
        if head.method == "OPTIONS":
            head.purpose = "preflight"
            return
        if self._control is not None and is_for_people(head):
            head.purpose = "control" if is_control_path else "to_page"
            return
        has_session = self._has_session(head)
        head.grant = (
            ALLOW_ALL if has_session else granted(head, guard, is_open=self._is_open(head), is_control=is_control_path)
        )
        api = api_of(head.method, head.path, view.table.front.apis) if view.table.front.apis else ""
        if not is_control_path and api:
            head.purpose = api
            return
        if not is_control_path and head.path.startswith("/api/"):
            raise HttpError(404, "not_found", "there is no such path here: this is no Ollama; its APIs are below /v1")
        if is_control_path:
            check_control(head, getattr(client, "peer", ""), has_keys=guard.has_keys, has_session=has_session)
        head.purpose = "control" if is_control_path else self._purpose(head, view)

    def _purpose(self, head: Head, view: View) -> str:
        """The purpose of a request that is neither a preflight nor for the control API."""
        if head.method == "GET" and head.path.startswith(_GENERATIONS) and self._orchestrator is not None:
            return "report"
        if len(view.targets) > 1 and steers(head.method, head.path):
            return "steer"
        if head.path == "/metrics" and b"model=" in head.query:
            return "forward"  # the server's own
        if head.is_safe and local_page(head.path) is not None:
            return "page"
        if head.is_safe and head.path == "/props":
            return "props"
        return "forward"

    @staticmethod
    def _is_open(head: Head) -> bool:
        """Whether the path is answered without a key; what is forwarded never is."""
        page = local_page(head.path) if head.is_safe else None
        return page is not None and page.is_open

    def _has_session(self, head: Head) -> bool:
        """Whether it comes from a browser with a session; what acts must come from the front's own page."""
        cookies, origin = head.seen.get(b"cookie"), head.seen.get(b"origin")
        key = None if cookies is None else self.sessions.opened_by(cookies)
        if key is None or (key and not self.admits(key)):
            return False
        return head.is_safe if origin is None else is_same_origin(origin, head.seen.get(b"host"))

    def admits(self, key: str) -> bool:
        """Whether an API key of that name exists and may administer the fleet."""
        guard = self.view.guard
        try:
            return guard.has_keys and "admin" in guard.check_key(None, key.encode()).scopes
        except HttpError:
            return False


async def _report(orchestrator: Orchestrating, exchange: Exchange) -> None:
    """Answer with the record of a generation. Raises Refusal."""
    data = await orchestrator.report(exchange.head.path.removeprefix(_GENERATIONS), exchange.head.grant.name)
    exchange.answer(200, b"application/json", data)
