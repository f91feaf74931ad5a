"""Comments to a client whose stream waits for a slot, a swap or a load, as a sign of life. I/O.

After some seconds of silence the answer begins, with its header and a comment, `: ping` and what is waited for. Clients
skip comments, which are no events (WHATWG HTML, 9.2.6). From then on an error is an event, since the status is sent
already. Only a request with `stream: true` gets them, and only of an API whose streams are server-sent events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.live import Upstreams
from launcher.route.body import BIG_BYTES
from launcher.route.body_reader import BodyReader
from launcher.route.peek import BOM
from launcher.route.problem import HttpError
from launcher.route.reply import Reply
from launcher.route.target import SERVING, Target

EVENTS = b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\nx-request-id: %b\r\n"
STREAMING = frozenset({"chat", "completion", "infill"})
"""Kinds of requests whose answers can be event streams."""


class _Asked(msgspec.Struct):
    stream: bool = False


class Pings:
    """Pings of one request, from when it begins to wait."""

    __slots__ = ("_beating", "_body_reader", "_describe", "_every_s", "_reply", "_timer", "begun", "target")

    def __init__(
        self, reply: Reply, every_s: float, describe: Callable[[Target], str], body_reader: BodyReader
    ) -> None:
        """`every_s`: seconds of silence before the first and between two. `describe`: what is waited for, as text."""
        self._reply = reply
        self._every_s = every_s
        self._describe = describe
        self._body_reader = body_reader
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self.begun = False
        """The answer's header is sent."""
        self.target: Target | None = None
        """The server that is waited for."""

    def watch(self) -> None:
        """The request waits from now on."""
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._due)

    def stop(self) -> None:
        """The request does not wait any more, for now at least."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None

    def _due(self) -> None:
        if self.begun:
            self._send_ping()
        else:
            self._beating = asyncio.get_running_loop().create_task(self._begin())

    async def _begin(self) -> None:
        """Before the first ping: check whether the request asks for a stream."""
        body = self._reply.body
        try:
            is_stream = _asks_stream(body if len(body) <= BIG_BYTES else await self._body_reader.outline(body))
        except HttpError:
            is_stream = False  # its server will say what is wrong with it
        self._beating = None
        if is_stream:
            self._send_ping()

    def _send_ping(self) -> None:
        """Send one comment, with the header before the first."""
        reply, target = self._reply, self.target
        if reply.ended or reply.started or target is None:
            return
        self.watch()
        if reply.client.write_paused:
            return
        if not self.begun:
            self.begun = True
            reply.status = 200
            reply.client.begin(200, EVENTS % reply.id + reply.head.cors + reply.extra_lines, None)
        reply.client.write(f": ping {self._describe(target)}\n\n".encode(), False)


def _asks_stream(body: bytes) -> bool:
    """Whether a JSON body asks for a stream; False for what is none."""
    try:
        return msgspec.json.decode(body.removeprefix(BOM), type=_Asked).stream
    except UNREADABLE:
        return False


def waits_for(target: Target, upstreams: Upstreams) -> str:
    """What a request waits for: stage, server, and the estimated seconds if known."""
    state = upstreams.state(target.name)
    if state in SERVING:
        return f"queued server={target.name} waiting={len(target.gate.waiters)}"
    stage = "loading" if state in ("starting", "backoff") else "swapping"
    left_s = upstreams.left_s(target.name)
    return f"{stage} server={target.name}" + ("" if left_s is None else f" about_s={left_s:.0f}")
