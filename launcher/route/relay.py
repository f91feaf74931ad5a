"""One request at one upstream: send it, pass the answer on as it comes, end it honestly when it breaks. I/O."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from launcher.route.client import ClientGoneError, Turn
from launcher.route.problem import HttpError, error_event
from launcher.route.recovery import held_back
from launcher.route.target import Target
from launcher.route.upstream import Connection, UpstreamError
from launcher.route.wire import request_head, response_headers

WATCH_AFTER_S = 0.05
"""Answers faster than this need no task that watches for the client's leaving."""


class Attempt:
    """One try of a request at one target."""

    __slots__ = (
        "_body",
        "_client",
        "_connection",
        "_cut",
        "_deadline",
        "_loop",
        "_reply",
        "_request",
        "_sending",
        "_timer",
        "target",
        "tokens",
    )

    def __init__(self, turn: Turn, body: bytes, target: Target) -> None:
        """Nothing is sent yet. `body` is what this target gets."""
        self._loop = asyncio.get_running_loop()
        self._request = turn.request
        self._body = body
        self._client = turn.client
        self._reply = turn.reply
        self._connection: Connection | None = None
        self._cut: UpstreamError | None = None
        self._deadline = 0.0
        self._sending = False
        self._timer: asyncio.TimerHandle | None = None
        self.target = target
        self.tokens = (0, 0)

    async def run(self, *, timeout_s: float, connect_timeout_s: float) -> None:
        """Forward and answer. Raises UpstreamError; only `reply.status` == 0 leaves room for another answer."""
        self._deadline = self._loop.time() + timeout_s
        self._timer = self._loop.call_later(min(WATCH_AFTER_S, timeout_s), self._tick)
        try:
            connection = await self._answering(connect_timeout_s)
            await self._pass_on(connection)
        except asyncio.CancelledError:
            self._cut_off(UpstreamError("stopping", "the front is stopping"))
            raise
        finally:
            self._timer.cancel()
            if self._connection is not None:
                self.target.pool.put_back(self._connection)

    async def _answering(self, connect_timeout_s: float) -> Connection:
        """A connection on which the answer's head has come; a stale one is replaced by a fresh one, once."""
        head = request_head(self._request, self.target.authority, len(self._body), self.target.authorization)
        connection = self.target.pool.take()
        if connection is not None:
            try:
                return await self._ask(connection, head)
            except UpstreamError as error:
                if error.reason != "stale":
                    raise
            self.target.pool.put_back(connection)
            self._connection = None
        connection = await self.target.pool.connect(min(connect_timeout_s, self._deadline - self._loop.time()))
        return await self._ask(connection, head)

    async def _ask(self, connection: Connection, head: bytes) -> Connection:
        """Send the request, wait for the answer's head."""
        self._connection = connection
        if self._cut is not None:
            raise self._cut
        connection.send(head, self._body, head_only=self._request.method == "HEAD")
        await connection.head()
        return connection

    async def _pass_on(self, connection: Connection) -> None:
        """Give the answer to the client as it comes."""
        came = connection.headers
        if connection.length is not None and connection.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            came = [*came, (b"content-length", connection.length)]
        headers, is_events = response_headers(came, self.target.header, self._request.id)
        tail = before = last = held = b""
        if self.target.unit.rungs and (is_events or connection.status >= HTTPStatus.INTERNAL_SERVER_ERROR):
            held = await held_back(connection, is_events=is_events)
        try:
            await self._reply.start(connection.status, headers)
            while True:
                data, held = held or await connection.read(), b""
                done = connection.drained
                if data:
                    before, last = last, data
                if is_events:
                    tail = (tail + data)[-4:]
                self._sending = True
                await self._reply.body(data, more=not done)
                self._sending = False
                if done:
                    self.tokens = self.target.tokens.read(before, last)
                    return
        except UpstreamError as error:
            if is_events and error.reason != "client_gone" and not self._client.gone:
                await self._end_events(error, at_boundary=not tail or tail.endswith((b"\n\n", b"\r\n\r\n")))
            else:
                self._reply.abort()
            raise

    async def _end_events(self, error: UpstreamError, *, at_boundary: bool) -> None:
        """Say in the stream why it ends, so that its end is no clean one."""
        event = error_event(
            answer_to(error, self.target.name), self._request.path, self._request.id, at_boundary=at_boundary
        )
        await self._reply.body(event, more=False)

    def _tick(self) -> None:
        """The answer is taking its time: watch the client, and the whole timeout."""
        now = self._loop.time()
        if now >= self._deadline:
            self._cut_off(UpstreamError("timeout", "the server did not finish its answer in time"))
            return
        self._timer = self._loop.call_at(self._deadline, self._tick)
        self._client.watch(self._client_gone)

    def _client_gone(self) -> None:
        """Nobody waits for the answer: closing the connection cancels the generation."""
        self._cut_off(UpstreamError("client_gone", "the client left"))

    def _cut_off(self, error: UpstreamError) -> None:
        """End the exchange from here."""
        self._cut = error
        if self._connection is not None and self._connection.busy:
            self._connection.abort(error)
        if self._sending:
            self._reply.abort()


def answer_to(error: UpstreamError, server: str) -> HttpError:
    """What a client is told about a failed exchange. Raises ClientGoneError when there is none left."""
    message = f"server {server!r}: {error}"
    if error.reason == "client_gone":
        raise ClientGoneError
    if error.reason == "unreachable":
        return HttpError(503, "upstream_unreachable", message, retry_after_s=1)
    if error.reason == "timeout":
        return HttpError(504, "upstream_timeout", message)
    if error.reason == "garbage":
        return HttpError(502, "upstream_garbage", message)
    if error.reason == "out_of_memory":
        return HttpError(503, "out_of_memory", f"server {server!r} is out of memory: {error}", retry_after_s=30)
    if error.reason == "stopping":
        return HttpError(503, "front_stopping", message, retry_after_s=1)
    return HttpError(502, "upstream_died", message)
