"""A client's request in the hands of an orchestrator, and the questions that it asks the fleet meanwhile. I/O.

Such a question goes the way of any request, without a socket: woken, queued, counted, fallen back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from launcher.ir.exchange import Answered, Headers, Refusal
from launcher.route.client import Turn
from launcher.route.problem import HttpError, error_event

if TYPE_CHECKING:
    from launcher.route.asgi import Message, Scope
    from launcher.route.front import Front

_EVENTS: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Handover:
    """One client request; implements `launcher.ir.exchange.Exchange`."""

    def __init__(self, front: Front, turn: Turn, asked: str) -> None:
        """Nothing is answered yet."""
        self._front = front
        self._turn = turn
        self.path = turn.request.path
        self.body = turn.request.body
        self.asked = asked
        self.request_id = turn.request.id
        self.caller = turn.grant.name

    @property
    def gone(self) -> bool:
        """The client has left."""
        return self._turn.client.gone

    @property
    def finished(self) -> bool:
        """The answer is complete."""
        return self._turn.reply.finished

    def header(self, name: bytes) -> str | None:
        """A request header that the front reads."""
        value = self._turn.request.seen.get(name)
        return None if value is None else value.decode("latin-1").strip()

    def may_ask(self, server: str) -> bool:
        """Whether the caller's key allows every server of this name."""
        directory = self._front.view.directory
        servers = directory.tiers(server)[0] if server in directory else (server,)
        return all(self._turn.grant.may_ask(self.asked, name) for name in servers)

    async def ask(self, server: str, path: str, body: bytes, *, timeout_s: float, as_caller: bool = False) -> Answered:
        """Ask a server something on the way. Raises Refusal, TimeoutError."""
        question = _Question(path, body, self.request_id)
        if as_caller:
            question.turn.grant = self._turn.grant
        try:
            async with asyncio.timeout(timeout_s):
                await self._front.pass_on(self._front.view, question.turn, server, granted=self.asked)
        except HttpError as error:
            raise Refusal(error.status, error.code, error.message, retry_after_s=error.retry_after_s) from error
        finally:
            question.turn.client.close()
        return question.answered()

    async def forward(self, server: str, decision: str, headers: Headers) -> None:
        """Have `server` answer the client itself."""
        self._turn.decision = decision
        self._turn.reply.extra = self._turn.reply.extra + headers
        await self._front.pass_on(self._front.view, self._turn, server, granted=self.asked)

    async def whole(self, status: int, data: bytes, headers: Headers) -> None:
        """Answer with JSON."""
        await self._turn.reply.whole(status, b"application/json", data, headers)

    async def events(self, headers: Headers) -> None:
        """Begin to answer with server-sent events."""
        await self._turn.reply.start(200, [*_EVENTS, (b"x-request-id", self.request_id.encode()), *headers])

    async def event(self, data: bytes, *, more: bool = True) -> None:
        """One event, or several."""
        await self._turn.reply.body(data, more=more)

    async def fail(self, refusal: Refusal) -> None:
        """Answer with an error."""
        error = as_http(refusal)
        if not self._turn.reply.status:
            raise error
        self._front.refused[error.code] += 1
        event = error_event(error, self.path, self.request_id, at_boundary=True)
        await self._turn.reply.body(event, more=False)


class _Question:
    """A request of our own, as a turn whose client is ourselves."""

    def __init__(self, path: str, body: bytes, request_id: str) -> None:
        """A POST of JSON."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "http_version": "1.1",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        }
        self._status = 0
        self._server = ""
        self._parts: list[bytes] = []
        self.turn = Turn(scope, self._receive, self._send)
        self.turn.request.body = body
        self.turn.request.id = self.turn.reply.request_id = request_id

    def answered(self) -> Answered:
        """What came back."""
        return Answered(status=self._status, body=b"".join(self._parts), server=self._server)

    async def _receive(self) -> Message:
        """We do not leave: whoever waits for that waits until it is cancelled."""
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    async def _send(self, message: Message) -> None:
        """Keep the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._server = dict(message["headers"]).get(b"x-launch-server", b"").decode("latin-1")
        else:
            self._parts.append(message.get("body", b""))


async def hand_over(front: Front, turn: Turn, asked: str) -> None:
    """Let the front's orchestrator answer, as long as the client waits. Raises HttpError, ClientGoneError."""
    assert front.orchestrator is not None  # noqa: S101  # asked before
    try:
        await turn.client.unless_gone(front.orchestrator.answer(Handover(front, turn, asked)))
    except Refusal as refusal:
        raise as_http(refusal) from refusal


def as_http(refusal: Refusal) -> HttpError:
    """A refusal as the front's own error."""
    if isinstance(refusal, HttpError):
        return refusal
    return HttpError(
        refusal.status,
        refusal.code,
        refusal.message,
        param=refusal.param,
        retry_after_s=refusal.retry_after_s,
        details=refusal.details,
    )
