"""What servers on trial are asked: prompts of stated lengths, lines of a file, or the lengths of a journal. I/O."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from launcher.base.decoding import decoded

TEXT = (
    "A lighthouse keeper writes down the weather every evening. On Monday the wind came from the north and the sea was "
    "grey. On Tuesday two ships passed, one of them under sail. Compute the sum of the first hundred numbers; sort a "
    "list of names; explain how a bridge carries its load to both banks. def mean(values): return sum(values) / "
    "len(values). The committee met in April, heard three reports, and decided that the road should follow the river. "
    "Water boils at a lower temperature on a mountain. Translate: the cat sleeps on the warm stone beside the door. "
)
LENGTHS_MAX = 20
"""Of a journal: so many lengths, evenly spread over its requests from short to long."""


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompts come from: `lengths` in tokens, of the text built in; or whole `texts`."""

    source: str = "built in"
    lengths: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


class _JournalLine(msgspec.Struct):
    prompt_tokens: int = 0


def read_prompts(path: Path) -> Prompts:
    """A journal (`*.jsonl`) gives its lengths, any other file one prompt a line.

    Raises OSError; ValueError where there are none.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        if not lines:
            raise ValueError("it has no line that is not empty")
        return Prompts(source=str(path), texts=tuple(lines))
    entries = (decoded(line, _JournalLine) for line in lines)  # None: a line that is torn
    found = sorted(entry.prompt_tokens for entry in entries if entry is not None and entry.prompt_tokens > 0)
    if not found:
        raise ValueError("no line of it has prompt_tokens")
    step = max(1, len(found) // LENGTHS_MAX)
    return Prompts(source=str(path), lengths=tuple(found[step // 2 :: step])[:LENGTHS_MAX])


def cut(tokens: Sequence[int], length: int, number: int) -> list[int]:
    """`length` tokens of a text, beginning elsewhere for each `number`, so that no prompt begins like another."""
    start = number * 17 % len(tokens)
    times = (start + length) // len(tokens) + 1
    return [token for _ in range(times) for token in tokens][start : start + length]
