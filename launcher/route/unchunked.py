"""Answers to HTTP/1.0, which knows no chunks: one without a length ends with its connection. Pure.

uvicorn writes chunks whatever the version; nginx asks its upstreams in HTTP/1.0 unless it is told not to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from launcher.route.asgi import ASGIApp, Message, Receive, Scope, Send


def without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> Any:  # uvicorn's own ASGI types are narrower
    """`app`, whose answers of unknown length are written as they are, and end the connection."""
    unbounded = False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def plain(message: Any) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                unbounded = not _has_length(message)
                if unbounded:
                    cycle.chunked_encoding = cycle.keep_alive = False
            elif unbounded:
                cycle.expected_content_length = len(message.get("body", b""))  # what uvicorn compares this part with
            await send(message)

        await app(scope, receive, plain)

    return answer


def _has_length(start: Message) -> bool:
    """Whether the answer says how long it is."""
    return any(name.lower() == b"content-length" for name, _ in start.get("headers", ()))
