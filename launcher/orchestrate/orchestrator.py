"""Requests for `auto`, and requests whose answers are validated: decide, prepare, generate, report. I/O."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launcher.errors import HostError
from launcher.ir.events import Happened
from launcher.ir.exchange import Exchange, Headers, Refusal
from launcher.ir.fleet import RoutingTable
from launcher.orchestrate.answer import MOST_BYTES, text_of_answer
from launcher.orchestrate.ask import Server, Sizes
from launcher.orchestrate.context import request_text
from launcher.orchestrate.cycle import Commit
from launcher.orchestrate.decision import (
    DECISION_TOKENS,
    Decision,
    RouterBackoff,
    by_rules,
    by_task_type,
    front_door,
    parse_decision,
    policy_of,
    router_prompt,
    router_question,
)
from launcher.orchestrate.generation import Generation, WriteJob
from launcher.orchestrate.memory import FILE_NAME, Keeper, OpenGeneration, ProjectMemory
from launcher.orchestrate.request import TEXT_PATHS, fields_of, job_of, json_of, name_in, unvalidated
from launcher.orchestrate.settings import AUTO, Orchestration, settings_of
from launcher.orchestrate.tally import Tally

_LOG = logging.getLogger("launch.orchestrate")
_DAY_S = 86400.0
_REOPEN_S = 10
_RESTS = 3
"""Rest of the router after a timeout, as a multiple of its time limit."""
_NOT_ENDED_BY_CLIENT = ("other", "running", "complete")
"""Statuses of a found generation that a disconnecting client does not end."""


class _Request(NamedTuple):
    """A client's request, by the settings of when it came, and where what comes of it is kept."""

    exchange: Exchange
    settings: Orchestration
    body: dict[str, Any]
    """Its JSON, where it has text."""
    project: str
    is_shared: bool
    """The client named the project, which its worker then may be shown."""
    generation: str


class Orchestrator:
    """Implements `launcher.ir.exchange.Orchestrating` over a project memory in `state_dir()`, opened when needed."""

    def __init__(self, table: RoutingTable, state_dir: Callable[[], Path]) -> None:
        """Raises ConfigError for a foreign section of the table."""
        self._state_dir = state_dir
        self._settings: Orchestration | None = None
        self._keeper: Keeper | None = None
        self._sizes = Sizes()
        self._patience = RouterBackoff(0)
        self._tally = Tally(lambda happened: self.emit(happened))  # noqa: PLW0108  # `emit` is given later
        self._validating = 0
        """Number of answers that are being validated."""
        self._pruned_at = 0.0
        self._opens_at = 0.0
        """When to try again to open a memory that could not be opened (monotonic clock)."""
        self.on_domain: Callable[[str], object] = len
        """Called with the domain of each request for `auto`, at once: it must not block."""
        self.emit: Callable[[Happened], None] = lambda _: None
        """Gets decisions, verdicts, corrections, committed blocks and ends."""
        self.take_over(table)

    def take_over(self, table: RoutingTable) -> None:
        """Take over another table. Raises like the constructor, and then keeps the old one."""
        self._settings = settings_of(table)
        self._sizes = Sizes()
        self._patience = RouterBackoff(_RESTS * self._settings.config.router_timeout_s if self._settings else 0.0)
        self._opens_at = 0.0
        if self._settings is not None:
            self._memory()

    def _memory(self) -> Keeper | None:
        """The memory; None where it cannot be opened: requests go on without, and it is tried again later."""
        if self._keeper is not None and self._keeper.is_gone():
            _LOG.warning("the project memory was removed while it was in use: a new one is begun")
            self.close()
        if self._keeper is None and time.monotonic() >= self._opens_at:
            try:
                self._keeper = Keeper(ProjectMemory(self._state_dir() / FILE_NAME))
            except HostError as error:
                self._opens_at = time.monotonic() + _REOPEN_S
                for finding in error.findings:
                    _LOG.warning("%s; answers are not validated until then", finding.message)
        return self._keeper

    def names(self) -> tuple[str, ...]:
        """`auto`, where orchestration is configured."""
        return () if self._settings is None else (AUTO,)

    def validated(self) -> frozenset[str]:
        """Names whose answers are always validated."""
        return frozenset() if self._settings is None else self._settings.validated

    def metrics(self) -> str:
        """Prometheus text; "" where nothing is orchestrated."""
        return "" if self._settings is None else self._tally.text()

    def close(self) -> None:
        """Finish pending writes, and close the memory."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    # one request

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request for `auto`, or one whose answer is validated. Raises Refusal."""
        settings = self._settings
        if settings is None:
            if exchange.header(b"x-validation-policy") in (None, "none"):
                await exchange.forward(exchange.asked, "", [])
                return
            raise Refusal(400, "policy_unsupported", "this fleet has no orchestration, and no validator")
        named, requested = exchange.asked != AUTO, exchange.header(b"x-validation-policy")
        is_checked = requested is not None or exchange.asked in settings.model_policies
        if named and not is_checked and settings.config.memory.commits == "validated":
            await exchange.forward(exchange.asked, "", [])
            return
        request = _Request(
            exchange,
            settings,
            body=json_of(exchange) if exchange.path in TEXT_PATHS else {},
            project=name_in(exchange, b"x-project", "default"),
            is_shared=exchange.header(b"x-project") is not None,
            generation=name_in(exchange, b"x-generation-id", uuid.uuid4().hex),
        )
        decision = Decision(model=exchange.asked, source="named") if named else await self._decide(request)
        if not exchange.may_ask(decision.model):
            raise Refusal(403, "model_not_allowed", f"this API key may not ask {decision.model!r}", param="model")
        decision = self._checked(request, decision)
        keeper = self._memory()
        if keeper is not None:
            await self._note(request, keeper, decision)
        if decision.policy == "none":
            await self._forward(request, keeper, decision)
        elif keeper is None:
            raise Refusal(503, "memory_failed", "the project memory cannot be opened", retry_after_s=_REOPEN_S)
        else:
            await self._generate(request, keeper, decision)

    async def _note(self, request: _Request, keeper: Keeper, decision: Decision) -> None:
        """Count and store a decision about `auto`; a disk that fails does not refuse the request."""
        try:
            if decision.source != "named":
                self.on_domain(decision.domain)
                self._tally.decided(decision, request.generation, request.project)
                data = msgspec.to_builtins(decision)
                caller = request.exchange.caller
                await keeper.do(ProjectMemory.decided, caller, request.project, request.generation, data)
            now = time.monotonic()
            days = request.settings.config.memory.retention_days
            if days and (not self._pruned_at or now - self._pruned_at > _DAY_S):
                self._pruned_at = now
                await keeper.do(ProjectMemory.prune, days)
        except Refusal as refusal:
            _LOG.warning("a decision is not noted: %s", refusal.message)

    def _checked(self, request: _Request, decision: Decision) -> Decision:
        """The decision with its validation policy. Raises Refusal for one that was requested and is impossible."""
        exchange, settings = request.exchange, request.settings
        requested = exchange.header(b"x-validation-policy")
        policy, why = policy_of(settings, decision, requested), ""
        if policy != "none":
            is_named = requested is not None or decision.model in settings.model_policies
            if 0 < settings.validation.shed_above <= self._validating and not is_named:
                return msgspec.structs.replace(decision, policy="none", why="validation_shed")
            too_big = "a request as big as this is not validated"
            why = too_big if exchange.is_outline else unvalidated(exchange.path, request.body)
            if why and requested is not None:
                raise Refusal(400, "policy_unsupported", why)
        return msgspec.structs.replace(decision, policy="none" if why else policy)

    async def _forward(self, request: _Request, keeper: Keeper | None, decision: Decision) -> None:
        """Let the worker answer directly; the answer is stored where the project keeps such ones. Raises Refusal."""
        exchange, commits = request.exchange, request.settings.config.memory.commits
        keeps = request.is_shared and commits == "projects" and exchange.path in TEXT_PATHS
        header, headers = decision.header(), [_decision_line(decision)]
        if not keeps or keeper is None:
            await exchange.forward(decision.model, header, headers)
            return
        headers.append((b"x-generation-id", request.generation.encode()))
        passed = await exchange.forward(decision.model, header, headers, keep_bytes=MOST_BYTES)
        # many small events take a second: others are answered meanwhile
        text = await asyncio.to_thread(text_of_answer, passed.body) if passed.status == 200 else ""
        if not text:
            return
        answer = Commit(seq=0, text=text, verdicts=(), ends="stop")
        generation, project = request.generation, request.project
        fields = fields_of(exchange, request.body, decision)
        try:
            is_kept = await keeper.do(
                ProjectMemory.keep, generation, exchange.caller, project, answer, passed.server, **fields
            )
        except Refusal as refusal:
            _LOG.warning("an answer of project %s is not kept: %s", project, refusal.message)
            return
        if is_kept:
            self._tally.committed(passed.server, generation, answer)

    async def _generate(self, request: _Request, keeper: Keeper, decision: Decision) -> None:
        """Give a validated answer: a new one, or one that the client resumes. Raises Refusal."""
        exchange, settings = request.exchange, request.settings

        def job(model: str) -> WriteJob:
            by = msgspec.structs.replace(decision, model=model)
            return job_of(settings, request.body, by, shared=request.is_shared)

        first = job(decision.model)
        opened = await self._open(request, keeper, fields_of(exchange, request.body, decision))
        if opened.known:
            decision = msgspec.structs.replace(decision, model=opened.model, domain=opened.domain, policy=opened.policy)
            first = job(decision.model)
        stronger = (name for name in settings.stronger.get(decision.model, ()) if exchange.may_ask(name))
        headers: Headers = [
            _decision_line(decision),
            (b"x-launch-server", opened.model.encode()),
            (b"x-generation-id", opened.id.encode()),
        ]
        run = Generation(
            exchange,
            [first, *map(job, stronger)],
            opened,
            headers,
            settings=settings,
            keeper=keeper,
            sizes=self._sizes,
            tally=self._tally,
        )
        self._validating += 1
        try:
            await run.run()
        finally:
            self._validating -= 1

    async def _decide(self, request: _Request) -> Decision:
        exchange, settings = request.exchange, request.settings
        if exchange.path not in TEXT_PATHS:
            message = f"{exchange.path} has no text to decide by: name a model"
            raise Refusal(400, "auto_unsupported", message, param="model")
        task_type = exchange.header(b"x-task-type")
        if task_type:
            return by_task_type(settings, task_type)
        text = request_text(request.body)
        return by_rules(settings, text, exchange.may_ask) or await self._ask_router(exchange, settings, text)

    async def _ask_router(self, exchange: Exchange, settings: Orchestration, text: str) -> Decision:
        """The router's decision, or the front door where there is none in time. Raises Refusal."""
        workers = tuple(w for w in settings.workers if exchange.may_ask(w))
        if not settings.router or not workers or not text.strip() or not settings.domains:
            return front_door(settings, "nothing_to_decide", exchange.may_ask)
        if not self._patience.asks(time.monotonic()):
            return front_door(settings, "router_resting", exchange.may_ask)
        began, found = time.perf_counter(), None
        try:
            async with asyncio.timeout(settings.config.router_timeout_s):
                decision_text = await self._routed(exchange, settings, text, workers)
        except TimeoutError:
            why = "router_timeout"
        except Refusal as refusal:
            why = "router_timeout" if refusal.status == 504 else "router_unavailable"
        else:
            found = parse_decision(decision_text, settings, workers)
            unsure = found is not None and found.confidence < settings.config.confidence_min
            why = "router_malformed" if found is None else "router_unsure" if unsure else ""
        finally:
            self._tally.routing.observe(time.perf_counter() - began)
        self._patience.observed(time.monotonic(), late=why == "router_timeout")
        return found if found is not None and not why else front_door(settings, why, exchange.may_ask)

    async def _routed(self, exchange: Exchange, settings: Orchestration, text: str, workers: tuple[str, ...]) -> str:
        """The text of the router's answer. Raises Refusal, TimeoutError."""
        router = Server(exchange, settings.router, settings.config.router_timeout_s, self._sizes)
        found = await router.fitted(router_prompt(settings, text), settings.slots[router.name] - DECISION_TOKENS)
        if found is None:
            raise Refusal(400, "router_context", f"the prompt of {router.name!r} does not fit its slot")
        reply = await router.chat(router_question(settings, found[0], workers))
        return reply.text

    @staticmethod
    async def _open(request: _Request, keeper: Keeper, fields: dict[str, str]) -> OpenGeneration:
        """A new generation, or the one that the client resumes. Raises Refusal."""
        generation = request.generation
        call = keeper.do(ProjectMemory.open, generation, request.exchange.caller, request.project, **fields)
        opening = asyncio.ensure_future(call)
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opened = await opening
            if opened.known not in _NOT_ENDED_BY_CLIENT:
                await keeper.do(ProjectMemory.end, opened, "cancelled", "client_left", "the client left")
            raise
        if opened.known == "other":
            raise Refusal(409, "generation_mismatch", f"generation {generation!r} is of another request")
        if opened.known == "running":
            raise Refusal(409, "generation_running", f"generation {generation!r} is being worked at", retry_after_s=1)
        return opened

    async def report(self, generation: str, caller: str) -> bytes:
        """State of a generation of `caller` as JSON. Raises Refusal (404: unknown)."""
        keeper = self._memory()
        if keeper is None and self._settings is not None:
            raise Refusal(503, "memory_failed", "the project memory cannot be opened", retry_after_s=_REOPEN_S)
        found = None if keeper is None else await keeper.do(ProjectMemory.report, generation, caller)
        if found is None:
            raise Refusal(404, "generation_not_found", f"there is no generation {generation[:100]!r}")
        return msgspec.json.encode({"object": "generation", **found})


def _decision_line(decision: Decision) -> tuple[bytes, bytes]:
    return b"x-launch-decision", decision.header().encode("latin-1", "replace")
