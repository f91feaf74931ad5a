"""A client's request while an orchestrator answers it. I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from launcher.ir.exchange import Answered, Headers, Refusal
from launcher.route.exchange import Exchange
from launcher.route.head import lines_of
from launcher.route.keys import ALLOW_ALL
from launcher.route.peek import BOM
from launcher.route.pings import EVENTS
from launcher.route.problem import as_http, stopping
from launcher.route.question import Question, ask
from launcher.route.tap import Tap


def hand_over(exchange: Exchange, answer: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
    """Let `answer(*args)` answer in the exchange's place, as long as the client waits."""
    exchange.orchestration = asyncio.get_running_loop().create_task(_answer(exchange, answer, *args))


async def _answer(exchange: Exchange, answer: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
    try:
        await answer(*args)
        if not exchange.ended:
            raise RuntimeError("the request was handed over, and not answered")  # noqa: TRY301
    except asyncio.CancelledError:
        exchange.refuse(stopping())  # unless the client left
    except Refusal as refusal:
        exchange.extra_lines += lines_of(refusal.headers)
        exchange.refuse(as_http(refusal))
    except Exception as error:  # noqa: BLE001  # a bug of ours must not leave a client without an answer
        exchange.failed(error)
    finally:
        exchange.orchestration = None


class Handover:
    """One client request for an orchestrator; implements `launcher.ir.exchange.Exchange`."""

    def __init__(self, exchange: Exchange, asked: str, body: bytes) -> None:
        """`body`: the request's, or the outline of a big one (`is_outline`)."""
        self._exchange = exchange
        self.path = exchange.head.path
        self.body = body.removeprefix(BOM)
        self.is_outline = body is not exchange.body
        self.asked = asked
        self.request_id = exchange.id.decode("ascii")
        self.caller = exchange.head.grant.name

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected."""
        return self._exchange.gone

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._exchange.ended

    def header(self, name: bytes) -> str | None:
        """A request header that the front reads."""
        value = self._exchange.head.seen.get(name)
        return None if value is None else value.decode("latin-1").strip()

    def may_ask(self, server: str) -> bool:
        """Whether the caller's key allows every server of this name."""
        directory = self._exchange.view.directory
        servers = directory.tiers(server)[0] if server in directory else (server,)
        return all(self._exchange.head.grant.may_ask(self.asked, name) for name in servers)

    def escalated(self, server: str, to: str, why: str) -> None:
        """Record that `to` answers in place of `server`."""
        self._exchange.escalated(server, to, why)

    async def ask(self, server: str, path: str, body: bytes, *, timeout_s: float, as_caller: bool = False) -> Answered:
        """Ask a server an intermediate question. Raises Refusal, TimeoutError."""
        exchange = self._exchange
        grant = exchange.head.grant if as_caller else ALLOW_ALL
        question = Question(
            path=path,
            body=body,
            request_id=exchange.id,
            grant=grant,
            granted=self.asked,
            decision=exchange.decision if as_caller else "",
        )
        payer = exchange if as_caller else None
        return await ask(exchange.services, server, question, timeout_s=timeout_s, payer=payer)

    async def forward(self, server: str, decision: str, headers: Headers, *, keep_bytes: int = 0) -> Answered:
        """Let `server` answer the client itself. Raises Refusal."""
        exchange = self._exchange
        exchange.tap = tap = Tap(keep_bytes) if keep_bytes else None
        exchange.decision = decision
        exchange.extra_lines += lines_of(headers)
        ended = asyncio.Event()
        before = exchange.on_end

        def end() -> None:
            ended.set()
            if before is not None:
                before()

        exchange.on_end = end
        exchange.start(exchange.view.route(server), granted=self.asked)
        await ended.wait()
        body = tap.whole if tap is not None else b""
        return Answered(status=exchange.status, body=body, server=exchange.target.name if exchange.target else server)

    async def whole(self, status: int, data: bytes, headers: Headers) -> None:
        """Answer with JSON."""
        self._exchange.answer(status, b"application/json", data, lines_of(headers))

    async def events(self, headers: Headers) -> None:
        """Begin an answer of server-sent events."""
        self._exchange.begin(200, EVENTS % self._exchange.id + lines_of(headers), None)
        await self._exchange.write(b"", done=False)

    async def event(self, data: bytes, *, more: bool = True) -> None:
        """Send one event, or several; `more` False ends the answer."""
        await self._exchange.write(data, done=not more)

    async def fail(self, refusal: Refusal) -> None:
        """Answer with an error."""
        if self._exchange.started:
            self._exchange.end_events(as_http(refusal), at_boundary=True)
        else:
            self._exchange.extra_lines += lines_of(refusal.headers)
            self._exchange.refuse(as_http(refusal))
