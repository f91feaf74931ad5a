"""Errors of requests, and their formats in the APIs of OpenAI and Anthropic. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.exchange import Refusal

Shape = Literal["openai", "anthropic"]

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class HttpError(Refusal):
    """A refusal by the front; `close`: the client's connection is closed, too."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, code, message, param=param, retry_after_s=retry_after_s, details=details)
        self.close = close

    @property
    def retry_after(self) -> bytes | None:
        """Value of Retry-After, whole seconds rounded up, at least 1; None where a retry is not known to help."""
        return None if self.retry_after_s is None else b"%d" % max(1, math.ceil(self.retry_after_s))


def as_http(refusal: Refusal) -> HttpError:
    """A refusal as an HttpError."""
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


def may_be_escalated(status: int, body: bytes) -> bool:
    """Whether a stronger server may answer what this answer refuses: too long for the server, or it failed.

    Not for a wrong request (400), nor for a server that is not ready (503).
    """
    return (status >= 500 and status != 503) or (status == 400 and b"exceed_context_size_error" in body)


def stopping() -> HttpError:
    """The error for requests cut off at the end of the drain."""
    return HttpError(503, "front_stopping", "the front is stopping", retry_after_s=1)


def shape_of(path: str) -> Shape:
    """The API whose error format a client of `path` expects."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def _error_object(error: HttpError, shape: Shape, request_id: str) -> dict[str, Any]:
    if shape == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": error.message, "code": error.code, **error.details},
            "request_id": request_id,
        }
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": {**fields, **error.details}}


def error_body(error: HttpError, shape: Shape, request_id: str) -> bytes:
    """The error as `shape` writes it, as JSON. The stable `code` is in every shape."""
    return msgspec.json.encode(_error_object(error, shape, request_id))


def error_event(error: HttpError, path: str, request_id: str, *, at_boundary: bool) -> bytes:
    """A server-sent event with the error that ends a stream early.

    Anthropic's clients and OpenAI's responses API read the event's name, chat completions only its data. `at_boundary`
    False: an event was cut off, so a blank line ends it first.
    """
    shape = shape_of(path)
    value = _error_object(error, shape, request_id)
    named = shape == "anthropic"
    if path.endswith("/responses"):
        named = True
        value |= {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    prefix = b"" if at_boundary else b"\n\n"
    return prefix + (b"event: error\n" if named else b"") + b"data: " + msgspec.json.encode(value) + b"\n\n"


def unexpected_answer(status: int, body: bytes) -> HttpError:
    """The error for a server's answer that is not what was asked for, with the server's message if it has one."""
    try:
        found = msgspec.json.decode(body, type=dict)
    except UNREADABLE:
        found = {}
    error = found.get("error")
    error = error if isinstance(error, dict) else {}
    message = error.get("message")
    if status < 400 or not isinstance(message, str):
        message = (
            "the server answered with something else than was asked for" if status < 400 else "the server refused it"
        )
    kind = error.get("type")
    return HttpError(status if status >= 400 else 502, kind if isinstance(kind, str) else "upstream_refused", message)
