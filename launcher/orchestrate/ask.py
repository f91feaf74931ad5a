"""Requests to the fleet's servers on behalf of a client: chat completions and token counts. I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.exchange import Exchange, Refusal
from launcher.orchestrate.context import Message, Prompt, fit

CHAT = "/v1/chat/completions"
_KNOWN_SIZES = 4096
_MARGIN_TOKENS = 8
"""Kept free beyond the counted tokens: special tokens that a template adds when it answers."""
_EXACT_TRIES = 4


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A chat answer: its text, why it ends, what it took."""

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    server: str


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Prompt(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[Any]


def exceeds_context(refusal: Refusal) -> bool:
    """Whether a request is too long for a slot of the server that was asked, as the front or llama-server say it."""
    return refusal.code == "context_length_exceeded" or "exceed_context_size_error" in refusal.message


Sizes = OrderedDict[tuple[str, bytes], int]
"""Token counts of texts by server (each has its own tokenizer) and SHA-256 of the text, most recently used last."""


class Server(msgspec.Struct, frozen=True):
    """A server of the fleet, asked on behalf of a client. Its calls raise Refusal, and TimeoutError after `timeout_s`.

    `sizes`: known token counts, added to by its calls.
    """

    exchange: Exchange
    name: str
    timeout_s: float
    sizes: Sizes

    async def chat(self, question: dict[str, Any], *, as_caller: bool = False) -> ChatAnswer:
        """A complete chat answer, not streamed. `as_caller`: see `Exchange.ask`."""
        body = {"model": self.name, "cache_prompt": True, **question, "stream": False}
        answer, by = await self._ask(CHAT, body, _Completion, as_caller=as_caller)
        if not answer.choices:
            raise Refusal(502, "server_garbage", f"server {by!r} answered without a choice")
        choice = answer.choices[0]
        return ChatAnswer(
            text=choice.message.content or "",
            reason=choice.finish_reason or "stop",
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            server=by,
        )

    async def fitted(self, prompt: Prompt, room: int) -> tuple[list[Message], int] | None:
        """As much of `prompt` as fits into `room` tokens, and its token count; None where nothing fits.

        The whole prompt is counted, not estimated; the sizes of single pieces only decide which of them are shortened.
        """
        room -= _MARGIN_TOKENS
        messages = prompt.messages([0] * len(prompt.pieces))
        size = await self._prompt_tokens(messages)
        if size <= room:
            return messages, size
        sizes = [(piece.rank, [await self._tokens(text) for text in piece.variants]) for piece in prompt.pieces]
        around = size - sum(variants[0] for _, variants in sizes)
        for _ in range(_EXACT_TRIES):
            chosen = fit(sizes, room - around)
            if chosen is None:
                return None
            messages = prompt.messages(chosen)
            size = await self._prompt_tokens(messages)
            if size <= room:
                return messages, size
            around += size - room
        return None

    async def _prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat prompt, written by the server's own template."""
        found, _ = await self._ask("/apply-template", {"messages": messages}, _Prompt)
        return await self._tokens(found.prompt)

    async def _tokens(self, text: str) -> int:
        if not text:
            return 0
        key = (self.name, hashlib.sha256(text.encode(errors="surrogatepass")).digest())
        if key not in self.sizes:
            body = {"content": text, "add_special": True, "parse_special": True}
            found, _ = await self._ask("/tokenize", body, _Tokens)
            self.sizes[key] = len(found.tokens)
            if len(self.sizes) > _KNOWN_SIZES:
                self.sizes.popitem(last=False)
        self.sizes.move_to_end(key)
        return self.sizes[key]

    async def _ask(
        self, path: str, body: dict[str, Any], kind: type[Any], *, as_caller: bool = False
    ) -> tuple[Any, str]:
        """The answer as `kind`, and the server that gave it. Raises Refusal for errors and unreadable answers, too."""
        data = msgspec.json.encode(body)
        answered = await self.exchange.ask(self.name, path, data, timeout_s=self.timeout_s, as_caller=as_caller)
        if answered.status != 200:
            status = 400 if answered.status < 500 else 502
            code = "server_refused" if status == 400 else "server_error"
            excerpt = answered.body[:300].decode("utf-8", "replace")
            raise Refusal(status, code, f"server {answered.server!r} answered {answered.status}: {excerpt}")
        try:
            return msgspec.json.decode(answered.body, type=kind), answered.server
        except UNREADABLE as error:
            message = f"server {answered.server!r} answered what cannot be read: {error}"
            raise Refusal(502, "server_garbage", message) from None
