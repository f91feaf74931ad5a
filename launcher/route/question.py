"""Questions of our own to the fleet, and of clients whose answers come in another form: exchanges without connections.

They are woken, queued and counted like any. I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from launcher.ir.exchange import Answered
from launcher.route.exchange import Exchange
from launcher.route.head import Head
from launcher.route.keys import ALLOW_ALL, Grant
from launcher.route.problem import HttpError
from launcher.route.services import Services
from launcher.route.view import Route

_HELD_BYTES = 64 * 1024
_MOST_BYTES = 64 * 1024**2
"""Of an answer that is kept whole: the embeddings of half a megabyte of short texts would fill the memory."""


class _Collector:
    """A client that keeps the answer. `peer`: the address of whose request it is."""

    def __init__(self, peer: str = "") -> None:
        self.peer = peer
        self.write_paused = False
        self.status = 0
        self.parts: list[bytes] = []
        self._size = 0
        self.refusal: HttpError | None = None
        self.exchange: Exchange | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, status: int, lines: bytes, length: bytes | None) -> None:  # noqa: ARG002  # the protocol's
        self.status = status

    def write(self, data: bytes, done: bool) -> None:  # noqa: ARG002  # as above
        self._size += len(data)
        if self._size <= _MOST_BYTES:
            self.parts.append(data)
        elif self.refusal is None:
            message = f"the server's answer exceeds {_MOST_BYTES >> 20} MiB"
            self.refusal = HttpError(502, "upstream_garbage", message)
            self.parts.clear()
            self.ended.set_result(None)

    def error(self, error: HttpError, path: str, request_id: bytes, more: bytes) -> None:  # noqa: ARG002  # as above
        self.refusal = error

    def answered(self) -> None:
        """Wake who waits."""
        if self._timer is not None:
            self._timer.cancel()
        self.exchange = None  # a circle with this
        if not self.ended.done():
            self.ended.set_result(None)

    def set_answer_deadline(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.exchange is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self.exchange.overdue)

    def abort(self) -> None:
        self.refusal = HttpError(502, "upstream_died", "the server's answer broke off")

    def check(self) -> None:
        """Raises HttpError: the refusal, if there was one, without what belongs to our own request alone."""
        refusal = self.refusal
        if refusal is not None:
            raise HttpError(refusal.status, refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)


class _StreamCollector(_Collector):
    """One that is read in parts."""

    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self.more = asyncio.Event()

    def write(self, data: bytes, done: bool) -> None:  # noqa: ARG002  # as above
        """Keep the part, and have no more come where there is much."""
        self.parts.append(data)
        self._size += len(data)
        self.write_paused = self._size > _HELD_BYTES
        self.more.set()

    def answered(self) -> None:
        super().answered()
        self.more.set()

    def taken(self) -> bytes:
        """What came since."""
        data = b"".join(self.parts)
        self.parts.clear()
        self._size = 0
        self.more.clear()
        return data


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A POST of JSON of our own. It goes to servers that `grant` allows for the name `granted`."""

    path: str
    body: bytes
    request_id: bytes
    granted: str = ""
    grant: Grant = ALLOW_ALL
    decision: str = ""
    """The orchestrator's decision about the server, for the journal."""
    route: Route | None = None
    """Where to send it, if not by its name."""


def _asked_by(services: Services[Exchange], collector: _Collector, question: Question) -> Exchange:
    """An exchange for `question`, whose answer goes to `collector`."""
    headers = [(b"content-type", b"application/json"), (b"x-request-id", question.request_id)]
    head = Head("POST", question.path.encode(), "1.1", headers, keep_alive=True)
    exchange = collector.exchange = Exchange(services, collector, head, question.body)
    head.grant = question.grant
    exchange.decision = question.decision
    return exchange


async def ask(
    services: Services[Exchange], asked: str, question: Question, *, timeout_s: float, payer: Exchange | None = None
) -> Answered:
    """What a server of the name `asked` answers. Raises HttpError, TimeoutError.

    `payer`: the request of a client whose tokens those of the answer are.
    """
    collector = _Collector()
    exchange = _asked_by(services, collector, question)
    exchange.is_question = True
    try:
        async with asyncio.timeout(timeout_s):
            exchange.start(question.route or exchange.view.route(asked), granted=question.granted)
            await collector.ended
    except HttpError as error:
        collector.refusal = error
    finally:
        exchange.client_left()
        if payer is not None:
            payer.tokens = (payer.tokens[0] + exchange.tokens[0], payer.tokens[1] + exchange.tokens[1])
    collector.check()
    server = exchange.target.name if exchange.target is not None else ""
    return Answered(status=collector.status, body=b"".join(collector.parts), server=server)


async def relayed(exchange: Exchange, route: Route, question: Question) -> AsyncIterator[tuple[int, bytes]]:
    """The status and the parts of what a server of `route` answers to `question`, for the client of `exchange`.

    It counts as that client's request. Parts come as fast as they are taken. Raises HttpError.
    """
    answer = _StreamCollector(exchange.client.peer)
    inner = _asked_by(exchange.services, answer, question)
    inner.head.purpose = "forward"
    inner.start(route)
    try:
        while True:
            await answer.more.wait()
            over, was_paused, data = answer.ended.done(), answer.write_paused, answer.taken()
            answer.check()
            if data:
                yield answer.status, data
            if over:
                return
            if was_paused:
                answer.write_paused = False
                inner.progress()
    finally:
        inner.client_left()
        exchange.tokens = inner.tokens  # they are this client's
