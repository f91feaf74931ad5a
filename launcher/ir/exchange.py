"""The interface between data plane and orchestration: one request, asked and answered. Types only. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from launcher.ir.fleet import RoutingTable

Headers = list[tuple[bytes, bytes]]


class Refusal(Exception):  # noqa: N818  # it is a refusal, as an HTTP answer is one
    """A request that is answered with an error: HTTP status, stable code, and what belongs to it.

    `details` are further fields of the error object. `retry_after_s` is told where a retry may help. `headers` go with
    the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Keep the parts; the text of the exception is `message`."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})
        self.headers = headers or []


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A server's answer: to an intermediate question, or forwarded to the client."""

    status: int
    body: bytes
    server: str


class Exchange(Protocol):
    """One client request that an orchestrator answers, and the fleet behind the front. In the runtime's loop."""

    path: str
    body: bytes
    is_outline: bool
    """`body` is an outline for decisions: the whole is too big to be read here; `forward` sends all of it."""
    asked: str
    """The name that the request gives; "" for none."""
    request_id: str
    caller: str
    """Name of the caller's API key; "" where no keys are asked for."""

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""

    def header(self, name: bytes) -> str | None:
        """A request header that the front reads, stripped."""

    def may_ask(self, server: str) -> bool:
        """Whether the caller's key allows every server of this name."""

    def escalated(self, server: str, to: str, why: str) -> None:
        """`to` answers in place of `server`: counted, in the journal, and in the answer's head unless that is out."""

    async def ask(self, server: str, path: str, body: bytes, *, timeout_s: float, as_caller: bool = False) -> Answered:
        """Ask a server something on the way: woken, queued, counted like any request. Raises Refusal, TimeoutError.

        `as_caller`: whoever answers, a fallback too, is one that the caller's key allows.
        """

    async def forward(self, server: str, decision: str, headers: Headers, *, keep_bytes: int = 0) -> Answered:
        """Have `server` answer the client itself; `headers` go with its answer, `decision` into the front's journal.

        Returns what went by once it has ended; with no body where that was longer than `keep_bytes`, or was cut off.
        """

    async def whole(self, status: int, data: bytes, headers: Headers) -> None:
        """Answer the client with JSON."""

    async def events(self, headers: Headers) -> None:
        """Begin to answer with server-sent events."""

    async def event(self, data: bytes, *, more: bool = True) -> None:
        """Send one event, or several; not `more`: the answer ends."""

    async def fail(self, refusal: Refusal) -> None:
        """Answer with an error: an event, where events have begun."""


class Orchestrating(Protocol):
    """Answers the requests that no single server answers."""

    def take_over(self, table: RoutingTable) -> None:
        """Serve by another table from the next request on. Raises LaunchError, and then keeps the old one."""

    def names(self) -> tuple[str, ...]:
        """Names beside the fleet's own that requests may use (`auto`)."""

    def validated(self) -> frozenset[str]:
        """The fleet's names whose answers are always validated."""

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request for one of these names, or with a policy of its own. Raises Refusal."""

    async def report(self, generation: str, caller: str) -> bytes:
        """The record of a generation, as JSON. Raises Refusal 404."""

    def metrics(self) -> str:
        """Prometheus text of its own families."""

    def close(self) -> None:
        """End: no more requests will come."""
