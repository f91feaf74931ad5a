"""Questions to the fleet's servers on the way to an answer: chat, and how many tokens a prompt has. I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from launcher.ir.exchange import Exchange, Refusal
from launcher.orchestrate.context import Message, Piece, fit

CHAT = "/v1/chat/completions"
_KNOWN_SIZES = 4096
_MARGIN_TOKENS = 8
"""Between what is counted and what fits: special tokens that a template adds when it answers."""
_EXACT_TRIES = 4


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A chat answer: its text, why it ends, what it took."""

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    server: str


class _Message(msgspec.Struct):
    """The part of an answer's message that is read."""

    content: str | None = None


class _Choice(msgspec.Struct):
    """One choice."""

    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    """Token counts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    """A `chat.completion`."""

    choices: list[_Choice]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Prompt(msgspec.Struct):
    """`/apply-template`."""

    prompt: str


class _Tokens(msgspec.Struct):
    """`/tokenize`."""

    tokens: list[Any]


async def chat(
    exchange: Exchange, server: str, question: dict[str, Any], timeout_s: float, *, as_caller: bool = False
) -> Said:
    """Ask `server` for a chat completion, whole. Raises Refusal, TimeoutError. `as_caller`: see `Exchange.ask`."""
    body = msgspec.json.encode({"model": server, "cache_prompt": True, **question, "stream": False})
    answer, by = await _ask(exchange, server, CHAT, body, _Completion, timeout_s=timeout_s, as_caller=as_caller)
    if not answer.choices:
        raise Refusal(502, "server_garbage", f"server {by!r} answered without a choice")
    choice = answer.choices[0]
    return Said(
        text=choice.message.content or "",
        reason=choice.finish_reason or "stop",
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        server=by,
    )


def exceeds_context(refusal: Refusal) -> bool:
    """Whether a request is too long for the slot of who was asked, as we or a llama-server say it."""
    return refusal.code == "context_length_exceeded" or "exceed_context_size_error" in refusal.message


class Sizes:
    """Token counts of texts by each server's own tokenizer, remembered."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    async def of(self, exchange: Exchange, server: str, text: str, timeout_s: float) -> int:
        """Tokens of `text`. Raises Refusal, TimeoutError."""
        if not text:
            return 0
        key = (server, hashlib.sha256(text.encode(errors="surrogatepass")).digest())
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        body = msgspec.json.encode({"content": text, "add_special": True, "parse_special": True})
        found, _ = await _ask(exchange, server, "/tokenize", body, _Tokens, timeout_s=timeout_s)
        self._known[key] = len(found.tokens)
        if len(self._known) > _KNOWN_SIZES:
            self._known.popitem(last=False)
        return len(found.tokens)

    async def of_prompt(self, exchange: Exchange, server: str, messages: Sequence[Message], timeout_s: float) -> int:
        """Tokens of a chat prompt, as the server's own template writes it. Raises Refusal, TimeoutError."""
        body = msgspec.json.encode({"messages": messages})
        found, _ = await _ask(exchange, server, "/apply-template", body, _Prompt, timeout_s=timeout_s)
        return await self.of(exchange, server, found.prompt, timeout_s)

    async def fitted(
        self,
        exchange: Exchange,
        server: str,
        pieces: Sequence[Piece],
        compose: Callable[[Sequence[int]], list[Message]],
        *,
        room: int,
        timeout_s: float,
    ) -> tuple[list[Message], int] | None:
        """`compose` of the most of `pieces` that `room` tokens hold, and its size; None where nothing fits.

        The whole prompt is counted, not estimated; the sizes of single pieces only say which of them give way.
        """
        room -= _MARGIN_TOKENS
        messages = compose([0] * len(pieces))
        size = await self.of_prompt(exchange, server, messages, timeout_s)
        if size <= room:
            return messages, size
        sizes = [
            (piece.rank, [await self.of(exchange, server, text, timeout_s) for text in piece.variants])
            for piece in pieces
        ]
        around = size - sum(variants[0] for _, variants in sizes)
        for _ in range(_EXACT_TRIES):
            chosen = fit(sizes, room - around)
            if chosen is None:
                return None
            messages = compose(chosen)
            size = await self.of_prompt(exchange, server, messages, timeout_s)
            if size <= room:
                return messages, size
            around += size - room
        return None


async def _ask(
    exchange: Exchange,
    server: str,
    path: str,
    body: bytes,
    kind: type[Any],
    *,
    timeout_s: float,
    as_caller: bool = False,
) -> tuple[Any, str]:
    """Ask, and read the answer as `kind`. Raises Refusal for an error or anything that is not one, TimeoutError."""
    answered = await exchange.ask(server, path, body, timeout_s=timeout_s, as_caller=as_caller)
    if answered.status != 200:
        status = 400 if answered.status < 500 else 502
        code = "server_refused" if status == 400 else "server_error"
        said = answered.body[:300].decode("utf-8", "replace")
        raise Refusal(status, code, f"server {answered.server!r} answered {answered.status}: {said}")
    try:
        return msgspec.json.decode(answered.body, type=kind), answered.server
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"server {answered.server!r} answered what cannot be read: {error}"
        raise Refusal(502, "server_garbage", message) from None
