"""Validated answers as OpenAI's chat API writes them, whole and streamed. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.orchestrate.context import SEPARATOR

END = b"data: [DONE]\n\n"
"""Ends a stream of events."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What every part of one answer repeats. `created` is Unix time."""

    generation: str
    model: str
    created: int

    def whole(self, blocks: list[str], reason: str, usage: dict[str, int]) -> bytes:
        """A complete `chat.completion`."""
        message = {"role": "assistant", "content": SEPARATOR.join(blocks)}
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        return msgspec.json.encode(self._fields("chat.completion") | {"choices": choices, "usage": usage})

    def block(self, seq: int, text: str) -> bytes:
        """The event of block `seq`; separators come before all but the first."""
        delta = {"content": SEPARATOR + text} if seq else {"role": "assistant", "content": text}
        return self._event([{"index": 0, "delta": delta, "finish_reason": None}])

    def last(self, reason: str, usage: dict[str, int] | None) -> bytes:
        """The closing events; `usage` where the client asked for it."""
        closing = self._event([{"index": 0, "delta": {}, "finish_reason": reason}])
        if usage is not None:
            closing += self._event([], usage=usage)
        return closing + END

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """One chunk."""
        fields = self._fields("chat.completion.chunk") | {"choices": choices} | more
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _fields(self, kind: str) -> dict[str, Any]:
        """What every object has."""
        name = f"chatcmpl-{self.generation}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}
