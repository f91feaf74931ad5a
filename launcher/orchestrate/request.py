"""What a client's request says about its answer: validation, limits, and where it is stored. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.exchange import Exchange, Refusal
from launcher.orchestrate.context import OWN_TEXTS, request_text, task_of, text_of
from launcher.orchestrate.decision import Decision
from launcher.orchestrate.echo import Echo
from launcher.orchestrate.generation import WriteJob
from launcher.orchestrate.settings import BLOCK_PROMPT, Orchestration

_CHAT_PATHS = frozenset({"/v1/chat/completions", "/chat/completions"})
TEXT_PATHS = _CHAT_PATHS | {
    "/v1/completions",
    "/completions",
    "/completion",
    "/v1/responses",
    "/responses",
    "/v1/messages",
}
"""Paths of requests whose text decides which worker answers."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOT_IN_DIGEST = ("stream", "stream_options")


def json_of(exchange: Exchange) -> dict[str, Any]:
    """The request's JSON object. Raises Refusal."""
    try:
        body: dict[str, Any] = msgspec.json.decode(exchange.body or b"{}", type=dict[str, Any])
    except UNREADABLE as error:
        raise Refusal(400, "invalid_json", f"the body is no JSON object: {error}") from None
    return body


def unvalidated(path: str, body: dict[str, Any]) -> str:
    """Why the answer to a request cannot be validated; "" where it can."""
    if path not in _CHAT_PATHS:
        return "only chat completions are validated"
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or not messages:
        return "messages must be a list of objects"
    if any(isinstance(m.get("content"), list) and not _is_text(m["content"]) for m in messages):
        return "only text is validated"
    for key in ("tools", "functions", "response_format", "logprobs"):
        if body.get(key):
            return f"an answer with {key} is not validated"
    return "" if body.get("n") in (None, 1) else "only one choice is validated"


def _is_text(parts: list[Any]) -> bool:
    return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)


def _token_limit(body: dict[str, Any]) -> int | None:
    """The client's limit of tokens for the whole answer; None: no limit. Raises Refusal."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if value is None or value == -1:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refusal(400, "invalid_value", f"{key} must be a whole number above 0", param=key)
        return value
    return None


def name_in(exchange: Exchange, header: bytes, default: str) -> str:
    """The name in a header. Raises Refusal."""
    value = exchange.header(header)
    if value is None:
        return default
    if not _NAME.fullmatch(value):
        message = f"{header.decode()} must be 1 to 64 letters, digits, dots, dashes and underscores"
        raise Refusal(400, "invalid_header", message)
    return value


def fields_of(exchange: Exchange, body: dict[str, Any], decision: Decision) -> dict[str, str]:
    """The stored fields of a generation; only a request with the same digest can resume it."""
    kept = {key: value for key, value in body.items() if key not in _NOT_IN_DIGEST}
    given = [kept, exchange.header(b"x-validation-policy"), exchange.header(b"x-task-type")]
    return {
        "digest": hashlib.sha256(msgspec.json.encode(given, order="sorted")).hexdigest(),
        "model": decision.model,
        "domain": decision.domain,
        "policy": decision.policy or "none",
    }


def job_of(settings: Orchestration, body: dict[str, Any], decision: Decision, *, shared: bool) -> WriteJob:
    """The worker's job; `shared`: it may be shown the project. Raises Refusal."""
    whole = decision.policy == "final"
    blocks = "" if whole else settings.validation.block_prompt or BLOCK_PROMPT
    own = settings.prompts.get(decision.model, "")
    options = body.get("stream_options")
    text = "\n".join(text_of(m.get("content")) for m in body["messages"])
    return WriteJob(
        model=decision.model,
        task=task_of(body["messages"], (own.strip(), blocks.strip()), whole=whole),
        asked=request_text(body),
        request=body,
        token_limit=_token_limit(body),
        context_blocks=settings.config.memory.context_blocks if shared else 0,
        stream=body.get("stream") is True,
        stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
        timeout_s=settings.timeouts_s.get(decision.model, 0),
        echo=Echo((blocks, *OWN_TEXTS), text),
    )
