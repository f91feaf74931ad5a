"""The client's side of a request: its body, its leaving, the answer it gets. I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from launcher.route.asgi import Message, RawHeaders, Receive, Scope, Send
from launcher.route.keys import EVERYTHING
from launcher.route.problem import HttpError, error_body, shape_of
from launcher.route.wire import Request

T = TypeVar("T")
_DISCARD_S = 1.0
"""How long a refused upload is still read, so that its sender sees the refusal and not a reset."""
ABORT_EXTENSION = "launch.abort"
"""Key of `scope["extensions"]` under which our HTTP protocol offers `call`, to cut the client's connection."""


class ClientGoneError(Exception):
    """The client closed its connection: nobody is left to answer."""


class Client:
    """What a client sends. Its leaving is noticed while the body is read, and when watched for."""

    __slots__ = ("_on_gone", "_receive", "_task", "gone")

    def __init__(self, receive: Receive) -> None:
        """Nothing is read yet."""
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._on_gone: Callable[[], object] | None = None
        self.gone = False

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises HttpError 413 beyond `limit_bytes`, ClientGoneError."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGoneError
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            if not message.get("more_body", False):
                return b"".join((*parts, part)) if parts else part
            parts.append(part)

    async def discard(self) -> None:
        """Read and drop what still comes, for a short while."""
        try:
            async with asyncio.timeout(_DISCARD_S):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def watch(self, on_gone: Callable[[], object]) -> None:
        """Call `on_gone` once when the client leaves; replaces an earlier callback."""
        self._on_gone = on_gone
        if self.gone:
            on_gone()
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def unless_gone(self, waiting: Awaitable[T]) -> T:
        """The result of `waiting`, given up with ClientGoneError when the client leaves first."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task
        self.watch(task.cancel)
        try:
            return await waiting
        except asyncio.CancelledError:
            if not self.gone:
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            self._on_gone = None

    def close(self) -> None:
        """Stop watching."""
        self._on_gone = None
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        """Wait for the disconnect."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()


class Reply:
    """The answer to one request."""

    __slots__ = ("_abort", "_send", "extra", "finished", "request_id", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        """Nothing is sent yet. `extra` headers go with every answer."""
        self._send = send
        extension = (scope.get("extensions") or {}).get(ABORT_EXTENSION) or {}
        self._abort: Callable[[], object] | None = extension.get("call")
        self.extra: RawHeaders = []
        self.request_id = ""
        self.status = 0
        self.finished = False

    async def raw(self, message: Message) -> None:
        """An ASGI message of another app, as it is."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Status and headers."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self.extra})

    async def body(self, data: bytes, *, more: bool) -> None:
        """A part of the body; the last when not `more`."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.finished = not more

    def abort(self) -> None:
        """Cut the client's connection: what it got is not the whole answer."""
        if self._abort is not None:
            self._abort()

    async def whole(self, status: int, content_type: bytes, data: bytes, headers: RawHeaders | None = None) -> None:
        """A complete answer of our own."""
        own = [
            (b"content-type", content_type),
            (b"content-length", str(len(data)).encode()),
            (b"x-request-id", self.request_id.encode()),
        ]
        await self.start(status, own + (headers or []))
        await self.body(data, more=False)

    async def error(self, error: HttpError, request: Request, client: Client) -> None:
        """An error in the shape of the request's API."""
        data = error_body(error, shape_of(request.path), self.request_id)
        headers: RawHeaders = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            (b"x-request-id", self.request_id.encode()),
        ]
        if error.retry_after is not None:
            headers.append((b"retry-after", error.retry_after))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.close:
            headers.append((b"connection", b"close"))
        await self.start(error.status, headers)
        if error.close and request.has_body:
            await self.body(data, more=True)
            await client.discard()
            data = b""
        await self.body(data, more=False)


class Turn:
    """One request and its answer."""

    __slots__ = ("chances", "client", "decision", "grant", "receive", "reply", "request", "scope", "sent_at")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From what ASGI gives."""
        self.scope = scope
        self.receive = receive
        self.request = Request(scope)
        self.client = Client(receive)
        self.reply = Reply(scope, send)
        self.grant = EVERYTHING
        self.decision = ""
        """Why it goes where it goes, where an orchestrator said so."""
        self.chances = 0
        """How often it was asked again after its server ran out of memory."""
        self.sent_at = 0.0
        """When it was last sent to a server, a time of the loop."""


def too_large(limit_bytes: int) -> HttpError:
    """The answer to a body beyond the limit."""
    return HttpError(413, "body_too_large", f"the body exceeds {limit_bytes} bytes (max_body_bytes)", close=True)
