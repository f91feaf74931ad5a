"""Validated answers in the format of OpenAI's chat API, whole or streamed, and the text in other answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from launcher.base.decoding import decoded
from launcher.orchestrate.context import SEPARATOR

END = b"data: [DONE]\n\n"
"""The line that ends a stream of events."""
MOST_BYTES = 4 * 1024**2
"""Bytes; a longer answer is not kept."""


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every part of one answer repeats. `created` is Unix time."""

    generation: str
    model: str
    created: int

    def whole(self, blocks: list[str], reason: str, usage: dict[str, int]) -> bytes:
        """A complete `chat.completion`."""
        message = {"role": "assistant", "content": SEPARATOR.join(blocks)}
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        return msgspec.json.encode(self._fields("chat.completion") | {"choices": choices, "usage": usage})

    def block(self, seq: int, text: str) -> bytes:
        """The event of block `seq`; all but the first begin with a separator."""
        delta = {"content": SEPARATOR + text} if seq else {"role": "assistant", "content": text}
        return self._event([{"index": 0, "delta": delta, "finish_reason": None}])

    def last(self, reason: str, usage: dict[str, int] | None) -> bytes:
        """The closing events; `usage` where the client asked for it."""
        closing = self._event([{"index": 0, "delta": {}, "finish_reason": reason}])
        if usage is not None:
            closing += self._event([], usage=usage)
        return closing + END

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        fields = self._fields("chat.completion.chunk") | {"choices": choices} | more
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _fields(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{self.generation}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}


def text_of_answer(data: bytes) -> str:
    """The text in an answer: a chat, completion, response or message, whole or streamed.

    "" where there is none, or the answer ended with an error.
    """
    parts = (data,) if data.lstrip().startswith(b"{") else _events(data)
    objects = [found for part in parts if (found := decoded(part, dict[str, Any])) is not None]
    return "" if any("error" in found and found["error"] for found in objects) else "".join(map(_text, objects))


def _events(data: bytes) -> Iterator[bytes]:
    for line in data.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:]


def _text(found: dict[str, Any]) -> str:
    """The text of one object: an answer, or an event of a stream."""
    choice = _first(found.get("choices"))
    for message in (choice.get("message"), choice.get("delta")):
        if isinstance(message, dict):
            return _plain(message.get("content"))
    if choice:
        return _plain(choice.get("text"))
    if found.get("type") == "content_block_delta" and isinstance(found.get("delta"), dict):
        return _plain(found["delta"].get("text"))
    if found.get("type") == "response.output_text.delta":
        return _plain(found.get("delta"))
    if isinstance(found.get("output"), list):
        return "".join(_plain(item.get("content")) for item in found["output"] if isinstance(item, dict))
    return _plain(found.get("content"))


def _plain(content: Any) -> str:
    """A string as it is; of a list of parts, their texts together."""
    if isinstance(content, list):
        return "".join(_plain(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _first(values: Any) -> dict[str, Any]:
    return values[0] if isinstance(values, list) and values and isinstance(values[0], dict) else {}
