"""What goes wrong with a request, and how each API writes it: OpenAI's and Anthropic's error shapes. Pure."""

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
    """A refusal of the front's own: `close` ends the client's connection, too."""

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
        """The value of Retry-After, whole seconds rounded up, at least one; None where a retry is not known to help."""
        return None if self.retry_after_s is None else b"%d" % max(1, math.ceil(self.retry_after_s))


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


def refuses(status: int, body: bytes) -> bool:
    """Whether a server's answer says that another one may do what it cannot: too long for it, or failed in it.

    What is wrong with the request itself (400), and a server that is not ready (503), is none.
    """
    return (status >= 500 and status != 503) or (status == 400 and b"exceed_context_size_error" in body)


def stopping() -> HttpError:
    """The answer to what the end of the drain cut off."""
    return HttpError(503, "front_stopping", "the front is stopping", retry_after_s=1)


def shape_of(path: str) -> Shape:
    """The API whose errors a client of `path` understands."""
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
    """A server-sent event that says why a stream ends early.

    Anthropic's clients and OpenAI's responses API read the event's name, chat completions only its data.
    `at_boundary` False means that an event was cut: a blank line ends it first.
    """
    shape = shape_of(path)
    value = _error_object(error, shape, request_id)
    named = shape == "anthropic"
    if path.endswith("/responses"):
        named = True
        value |= {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    prefix = b"" if at_boundary else b"\n\n"
    return prefix + (b"event: error\n" if named else b"") + b"data: " + msgspec.json.encode(value) + b"\n\n"


def answered_otherwise(status: int, body: bytes) -> HttpError:
    """A server's answer that is not what was asked for, as an error: in its own words, where it says some."""
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
