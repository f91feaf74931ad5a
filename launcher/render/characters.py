"""Characters that no command line, unit or script can carry. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.errors import Finding


def bad_characters(words: Iterable[str], key: str) -> tuple[Finding, ...]:
    """A `render/bad-character` error at `key` for each word with a NUL or a lone surrogate."""
    return tuple(
        Finding(code="render/bad-character", severity="error", key=key, message=f"{word!a} contains {what}")
        for word in words
        if (what := _what(word)) is not None
    )


def _what(word: str) -> str | None:
    """Name of the first thing in `word` that cannot be passed on, if any."""
    if "\0" in word:
        return "a NUL character"
    if any("\ud800" <= c <= "\udfff" for c in word):
        return "a lone surrogate, which is not text"
    return None
