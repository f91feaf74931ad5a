"""The front: one ASGI app that answers for the whole fleet. I/O."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from launcher.ir.exchange import Orchestrating, Refusal
from launcher.ir.fleet import FrontUnit, RoutingTable
from launcher.ir.live import Lease, UnavailableError, Upstreams
from launcher.route import pages
from launcher.route.asgi import ASGIApp, Receive, Scope, Send
from launcher.route.body import for_target
from launcher.route.client import Client, ClientGoneError, Reply, Turn, too_large
from launcher.route.deadlines import Deadlines
from launcher.route.directory import Directory
from launcher.route.expansion import Expansion, thresholds
from launcher.route.express import LEFT
from launcher.route.guard import Guard, is_loopback, is_open
from launcher.route.handover import as_http, hand_over
from launcher.route.journal import Journal
from launcher.route.passage import NO_SLOT_ENDINGS, Passage
from launcher.route.peek import peek
from launcher.route.problem import HttpError
from launcher.route.recovery import another_chance
from launcher.route.relay import Attempt, answer_to
from launcher.route.sticky import Sticky
from launcher.route.target import SERVING, Target, choose
from launcher.route.upstream import UpstreamError
from launcher.route.view import View
from launcher.route.wire import RequestIds, cors_headers, preflight_headers

_LOG = logging.getLogger("launch.route")
_ACCESS = logging.getLogger("launch.access")
_GENERATIONS = "/v1/generations/"
_OPEN_CONTROL = frozenset((method, f"/api/{name}") for method in ("GET", "HEAD") for name in ("status", "openapi.json"))
_CSP = [(b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")]


class Front:
    """The data plane as an ASGI app. Raises ConfigError or HostError for a table that cannot be served safely."""

    def __init__(
        self,
        table: RoutingTable,
        upstreams: Upstreams,
        *,
        control: ASGIApp | None = None,
        express: bool = True,
        orchestrator: Orchestrating | None = None,
    ) -> None:
        """`control` answers under `/api/`, for clients on this machine only. `express` False: ASGI path only.

        `orchestrator` serves by `table` too, and answers what no single server answers.
        """
        self.express = express
        self.more_metrics: Callable[[], str] = str
        """What whoever runs the servers adds to /metrics."""
        self.orchestrator = orchestrator
        self.deadlines = Deadlines()
        self.expansion = Expansion()
        self.sticky = Sticky()
        self.journal: Journal | None = None
        self.upstreams = upstreams
        self._control = control
        self.ids = RequestIds()
        self.refused: Counter[str] = Counter()
        self._created = int(time.time())
        self.view = self._make_view(table, {})
        self.journal = _journal(table)
        self.records = self.journal is not None or table.front.access_log
        """Whether answered requests are noted somewhere."""

    @property
    def unit(self) -> FrontUnit:
        """Limits and address of the table that is served now."""
        return self.view.table.front

    def replace_table(self, table: RoutingTable) -> None:
        """Serve another table from the next request on; requests in flight finish on the old one.

        Raises like the constructor, and then keeps the old table.
        """
        old = self.view.targets
        orchestrator = self.orchestrator
        if orchestrator is not None:
            orchestrator.take_over(table)
        try:
            view = self._make_view(table, old)
        except BaseException:
            if orchestrator is not None:
                orchestrator.take_over(self.view.table)
            raise
        if table.front.journal_file != self.unit.journal_file:
            journal, self.journal = self.journal, _journal(table)
            if journal is not None:
                journal.close()
        self.view = view
        self.records = self.journal is not None or table.front.access_log
        for name, target in old.items():
            if self.view.targets.get(name) is not target:
                target.pool.close()

    def close(self) -> None:
        """Close idle upstream connections, and what the orchestrator has open; the others end with their requests."""
        if self.orchestrator is not None:
            self.orchestrator.close()
        self.deadlines.close()
        self.expansion.close()
        if self.journal is not None:
            self.journal.close()
            self.journal = None
            self.records = self.unit.access_log
        for target in self.view.targets.values():
            target.pool.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            raise ValueError(f"the front speaks http, not {scope['type']}")
        started = time.perf_counter()
        turn = Turn(scope, receive, send)
        request, client, reply = turn.request, turn.client, turn.reply
        request.id = reply.request_id = self.ids.accept(request.seen.get(b"x-request-id"))
        code = ""
        try:
            await self._answer(self.view, turn)
        except HttpError as error:
            code = error.code
            await self._refuse(error, turn)
        except ClientGoneError:
            reply.status = reply.status or LEFT
        except asyncio.CancelledError:
            if not client.gone:
                await self._refuse(stopping(), turn)
        except Exception:  # noqa: BLE001  # a bug of ours must not leave a client without an answer
            _LOG.exception("request %s failed", reply.request_id)
            code = "internal_error"
            await self._refuse(HttpError(500, code, "an internal error; see the log"), turn)
        finally:
            client.close()
            if self.unit.access_log:
                seconds = time.perf_counter() - started
                path = request.raw_path.decode("latin-1")  # as it came: decoded it could end the line
                self.log_access(request.id, request.method, path, reply.status, code or "-", seconds)

    def record(  # noqa: PLR0917  # one call for the two ends of the fast path
        self,
        passage: Passage,
        request_id: str,
        asked: tuple[str, Target],
        status: int,
        seconds: float,
        tokens: tuple[int, int],
        *,
        code: str = "-",
    ) -> None:
        """Note an answered request of the fast path wherever that is wanted; `asked` is a name and its server."""
        name, target = asked
        if self.journal is not None:
            self.journal.add(
                request=request_id,
                caller=passage.grant.name,
                asked=name,
                server=target.name,
                path=passage.path,
                status=status,
                seconds=seconds,
                prompt_tokens=tokens[0],
                generated_tokens=tokens[1],
            )
        if self.unit.access_log:
            self.log_access(request_id, "POST", passage.path, status, code, seconds)

    def log_access(  # noqa: PLR0917  # the columns of a line
        self, request_id: str, method: str, path: str, status: int, code: str, seconds: float
    ) -> None:
        """One line of the access log, on stderr."""
        if not _ACCESS.handlers:
            _ACCESS.addHandler(logging.StreamHandler())
            _ACCESS.setLevel(logging.INFO)
        _ACCESS.info("%s %s %s %d %s %.1f ms", request_id, method, path, status, code, seconds * 1000)

    def _make_view(self, table: RoutingTable, old: dict[str, Target]) -> View:
        """Everything for `table`; servers at the same address keep their connections, counts and breakers."""
        directory = Directory(table)
        guard = Guard(table.front)
        targets: dict[str, Target] = {}
        for name, unit in table.targets.items():
            known = old.get(name)
            if known is not None and known.same_address(unit):
                known.update(unit)
                targets[name] = known
            else:
                targets[name] = Target(unit)
        tiers = {name: directory.tiers(name)[0] for name in directory.names()}
        orchestrator = self.orchestrator
        validated = frozenset(tiers) & orchestrator.validated() if orchestrator is not None else frozenset()
        auto = frozenset(orchestrator.names()) - frozenset(tiers) if orchestrator is not None else frozenset()
        only = {n: targets[first[0]] for n, first in tiers.items() if len(first) == 1 and n not in validated}
        return View(table, directory, guard, targets, only, auto, thresholds(table.pools, tiers), validated)

    # answering

    async def _answer(self, view: View, turn: Turn) -> None:
        """Check who asks, then answer here, hand to the control API, or forward."""
        guard, request, reply = view.guard, turn.request, turn.reply
        seen = request.seen
        host, origin = seen.get(b"host"), seen.get(b"origin")
        request.refuse_unusable()
        guard.check_host(host, request.version)
        is_control = request.path.startswith("/api/") and self._control is not None
        if origin is not None:
            guard.check_origin(origin, host, same=is_control)
            reply.extra = cors_headers(origin)
        if request.method == "OPTIONS":
            await reply.whole(204, b"text/plain", b"", preflight_headers(request))
            return
        if guard.has_keys and not is_open(request.method, request.path):
            turn.grant = guard.check_key(seen.get(b"authorization"), seen.get(b"x-api-key"))
            turn.grant.check_scope("admin" if is_control else "infer")
        if is_control:
            await self._to_control(view, turn)
        elif request.method == "GET" and request.path.startswith(_GENERATIONS) and self.orchestrator is not None:
            await self._report(self.orchestrator, turn)
        elif request.method not in ("GET", "HEAD") or not await self._answer_here(view, turn):
            await self._forward(view, turn)

    async def _to_control(self, view: View, turn: Turn) -> None:
        """Hand a request of this machine to the control API."""
        address = turn.scope.get("client")
        if address is None or not is_loopback(address[0]):
            raise HttpError(403, "control_is_local", "the control API answers clients on this machine only")
        if not view.guard.has_keys and (turn.request.method, turn.request.path) not in _OPEN_CONTROL:
            # every user and container of this machine reaches loopback: without keys it proves nothing
            message = "stop, reload and logs go through `launch`, whose socket is private; here they need an API key"
            raise HttpError(403, "control_needs_key", message)
        assert self._control is not None  # noqa: S101  # asked before
        await self._control(turn.scope, turn.receive, turn.reply.raw)

    async def _answer_here(self, view: View, turn: Turn) -> bool:
        """Answer a GET about the fleet itself; False when it is not one."""
        request, reply, may_ask = turn.request, turn.reply, turn.grant.may_ask
        state_of = self.upstreams.state
        path = request.path
        if path in ("/health", "/v1/health"):
            await _json(reply, 200, {"status": "ok"})
        elif path == "/ready":
            waiting = pages.not_ready(view.table, state_of)
            await _json(reply, 503 if waiting else 200, {"ready": not waiting, "waiting": waiting})
        elif path == "/metrics":
            text = pages.metrics_text(view.targets, state_of, self.refused)
            if self.orchestrator is not None:
                text += self.orchestrator.metrics()
            text += self.more_metrics()
            await reply.whole(200, b"text/plain; version=0.0.4; charset=utf-8", text.encode())
        elif path == "/":
            front = view.table.front
            host = request.seen.get(b"host", b"").decode("latin-1") or f"{front.host}:{front.port}"
            page = pages.home_page(view.table, state_of, f"{turn.scope['scheme']}://{host}")
            await reply.whole(200, b"text/html; charset=utf-8", page.encode(), _CSP)
        elif path in ("/v1/models", "/models", "/v1/models/", "/models/"):
            await _json(reply, 200, pages.models_list(view.table, state_of, self._created, view.auto, may_ask))
        elif path.startswith(("/v1/models/", "/models/")):
            name = path.partition("/models/")[2]
            if name in view.auto and may_ask(name, name):
                await _json(reply, 200, pages.auto_entry(name, self._created))
                return True
            name = view.directory.asked(name)
            unit = view.targets[view.directory.tiers(name)[0][0]].unit
            if not may_ask(name, unit.name):
                raise HttpError(403, "model_not_allowed", f"this API key may not ask for {name!r}")
            await _json(reply, 200, pages.model_entry(unit, state_of(unit.name), self._created))
        else:
            return False
        return True

    async def _report(self, orchestrator: Orchestrating, turn: Turn) -> None:
        """Answer what became of a generation. Raises HttpError."""
        try:
            data = await orchestrator.report(turn.request.path.removeprefix(_GENERATIONS), turn.grant.name)
        except Refusal as refusal:
            raise as_http(refusal) from refusal
        await turn.reply.whole(200, b"application/json", data)

    async def _refuse(self, error: HttpError, turn: Turn) -> None:
        """Answer with an error, unless an answer has begun: then that one is cut."""
        self.refused[error.code] += 1
        if turn.reply.status:
            if not turn.reply.finished:
                turn.reply.abort()
            return
        if b"expect" in turn.request.seen:
            error.close = True  # whether the body follows is the client's choice now: the framing is lost
        await turn.reply.error(error, turn.request, turn.client)

    # forwarding

    async def _forward(self, view: View, turn: Turn) -> None:
        """Read the request, find its server, pass the answer on."""
        request = turn.request
        await _read_body(turn, view.table.front.max_body_bytes)
        seen = request.seen
        named = view.directory.named(seen.get(b"x-model"), seen.get(b"x-task-type"))
        found = peek(request.body, seen.get(b"content-type", b""), request.query, named)
        if found.model in view.auto and request.method == "POST":
            await hand_over(self, turn, found.model or "")
            return
        asked = view.directory.asked(found.model)
        if self.orchestrator is not None and (asked in view.validated or b"x-validation-policy" in seen):
            await hand_over(self, turn, asked)
            return
        await self.pass_on(view, turn, asked)

    async def pass_on(self, view: View, turn: Turn, asked: str, *, granted: str = "") -> None:
        """Find a server of the name `asked` and pass its answer on. Raises HttpError, ClientGoneError.

        `granted` is the name that the caller's key must allow, where it is another.
        """
        request = turn.request
        asked = view.directory.asked(asked)
        beginnings = self.sticky.beginnings(request.body) if asked not in view.only else []
        failure: HttpError | None = None
        now = asyncio.get_running_loop().time
        only_look = request.method in ("GET", "HEAD")
        tiers = view.directory.tiers(asked)
        self.grow(view, asked)
        for tier in tiers[:1] if only_look else tiers:
            targets = [view.targets[name] for name in tier]
            while targets:
                choice = choose(targets, self.upstreams.state, now(), self.sticky.server(beginnings))
                if choice is None or (choice.asleep and only_look):
                    break
                targets.remove(choice.target)
                if not turn.grant.may_ask(granted or asked, choice.target.name):
                    raise HttpError(403, "model_not_allowed", f"this API key may not ask {asked!r}", param="model")
                self.sticky.remember(beginnings, choice.target.name)
                try:
                    await self._ask(view, asked, choice.target, turn)
                except UnavailableError as error:
                    failure = HttpError(503, error.code, error.message, retry_after_s=error.retry_after_s)
                except UpstreamError as error:
                    failure = answer_to(error, choice.target.name)
                    if await another_chance(self.upstreams, choice.target, error, turn):
                        targets.insert(0, choice.target)
                    elif error.reason != "unreachable":
                        raise failure from error
                else:
                    return
        raise failure or self._why_not([view.targets[n] for n in tiers[0]], now())

    async def _ask(self, view: View, asked: str, target: Target, turn: Turn) -> None:
        """One try at one server, from its gate to its accounts. Raises UnavailableError, UpstreamError."""
        request = turn.request
        takes_slot = request.method not in ("GET", "HEAD") and not request.path.endswith(NO_SLOT_ENDINGS)
        timeout_s = view.directory.timeout_s(asked, target.unit)
        began = time.perf_counter()
        lease = await self._admit(view, target, turn.client, takes_slot=takes_slot, wake_timeout_s=timeout_s)
        ok = True
        status = 0
        tokens = (0, 0)
        try:
            target.begin()
            body = for_target(request.body, target.unit) if takes_slot else request.body
            attempt = Attempt(turn, body, target)
            turn.sent_at = asyncio.get_running_loop().time()
            await attempt.run(timeout_s=timeout_s, connect_timeout_s=view.table.front.connect_timeout_s)
            target.succeeded()
            status = turn.reply.status
            tokens = attempt.tokens
        except UpstreamError as error:
            if error.reason in ("client_gone", "stopping"):
                target.abandoned()
                status = LEFT
            else:
                ok = False
                status = answer_to(error, target.name).status
                target.failed(asyncio.get_running_loop().time(), view.table.breaker)
            raise
        except BaseException:
            target.abandoned()
            raise
        finally:
            if takes_slot:
                target.gate.release()
            lease.release(ok=ok)
            seconds = time.perf_counter() - began
            target.tally.add(status or LEFT, seconds)
            if self.journal is not None:
                self.journal.add(
                    request=request.id,
                    caller=turn.grant.name,
                    asked=asked,
                    server=target.name,
                    path=request.path,
                    status=status or LEFT,
                    seconds=seconds,
                    prompt_tokens=tokens[0],
                    generated_tokens=tokens[1],
                    decision=turn.decision,
                )

    async def _admit(
        self, view: View, target: Target, client: Client, *, takes_slot: bool, wake_timeout_s: float
    ) -> Lease:
        """A lease on `target` and a slot of it. No waiting at all when both are there.

        Who queues for a slot holds no lease: a server that takes turns with others may have to go meanwhile. It is
        started again for who then has a slot.
        """
        front, gate = view.table.front, target.gate
        lease = self.upstreams.try_lease(target.name)
        if lease is None:
            lease = await client.unless_gone(self.upstreams.acquire(target.name, wake_timeout_s))
        if not takes_slot or gate.try_acquire():
            return lease
        lease.release(ok=False)
        await client.unless_gone(gate.acquire(queue_size=front.queue_size, timeout_s=front.queue_timeout_s))
        try:
            lease = self.upstreams.try_lease(target.name)
            if lease is None:
                lease = await client.unless_gone(self.upstreams.acquire(target.name, wake_timeout_s))
            return lease  # noqa: TRY300 - only a failure gives the slot back
        except BaseException:
            gate.release()
            raise

    def grow(self, view: View, asked: str) -> None:
        """One more request is for `asked`: start another server of its pool, if it has one that grows and is busy."""
        if asked in view.growing:
            targets = [view.targets[name] for name in view.directory.tiers(asked)[0]]
            self.expansion.consider(targets, view.growing[asked], self.upstreams)

    def _why_not(self, targets: list[Target], now: float) -> HttpError:
        """The answer when no server of a name, nor a fallback, can be asked."""
        states = {t.name: self.upstreams.state(t.name) for t in targets}
        waits = [t.breaker.open_until - now for t in targets if states[t.name] in SERVING and t.breaker.open_s]
        if waits:
            message = f"server {targets[0].name!r} failed repeatedly and is given a pause"
            return HttpError(503, "breaker_open", message, retry_after_s=max(1.0, min(waits)))
        shown = ", ".join(f"{name} is {state}" for name, state in states.items())
        code = "server_failed" if "failed" in states.values() else "server_stopped"
        return HttpError(503, code, f"no server can answer: {shown}", retry_after_s=5)


def stopping() -> HttpError:
    """The answer to what the end of the drain cut off."""
    return HttpError(503, "front_stopping", "the front is stopping", retry_after_s=1)


async def _read_body(turn: Turn, limit: int) -> None:
    """Read the whole body, if there is one. Raises HttpError 413 beyond `limit` bytes."""
    request = turn.request
    if request.has_body:
        announced = request.content_length()
        if announced is not None and announced > limit:
            raise too_large(limit)
        request.body = await turn.client.body(limit)


def _journal(table: RoutingTable) -> Journal | None:
    """The journal that the table asks for. Raises HostError."""
    path = table.front.journal_file
    return None if path is None else Journal(path)


async def _json(reply: Reply, status: int, value: object) -> None:
    """Answer with JSON."""
    await reply.whole(status, b"application/json", msgspec.json.encode(value))
