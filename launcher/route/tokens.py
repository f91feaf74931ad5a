"""Token counts, read from the end of an answer: llama-server writes `usage` and `timings` last. Pure."""

from __future__ import annotations

import re

_TAIL_BYTES = 2048
_PROMPT = re.compile(rb'"(?:prompt_n|prompt_tokens|input_tokens)":\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:predicted_n|completion_tokens|output_tokens)":\s*(\d{1,12})')
_RATE = re.compile(rb'"predicted_per_second":\s*(\d{1,12}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?)')
"""In a JSON string a quote is written `\\"`: text that looks like these keys never matches."""


class Tokens:
    """What one server's answers reported."""

    __slots__ = ("generated", "per_second", "prompt")

    def __init__(self) -> None:
        """Nothing reported."""
        self.prompt = 0
        self.generated = 0
        self.per_second: float | None = None

    def read(self, before: bytes, last: bytes) -> tuple[int, int]:
        """Add what the last two parts of an answer report; prompt and generated tokens of this answer."""
        tail = last if len(last) >= _TAIL_BYTES or not before else before[-_TAIL_BYTES:] + last
        if tail.rfind(b'"timings"', -_TAIL_BYTES) < 0 and tail.rfind(b'_tokens"', -_TAIL_BYTES) < 0:
            return 0, 0
        tail = tail[-_TAIL_BYTES:]
        prompt, output = _number(_PROMPT, tail), _number(_OUTPUT, tail)
        self.prompt += prompt
        self.generated += output
        rate = _RATE.search(tail)
        if rate is not None:
            self.per_second = float(rate[1])
        return prompt, output


def _number(pattern: re.Pattern[bytes], tail: bytes) -> int:
    """The last match: an answer's own sums come after those of its parts."""
    numbers = pattern.findall(tail)
    return max(map(int, numbers), default=0)
