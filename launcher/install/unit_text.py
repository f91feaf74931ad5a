"""Parse what a service runs from its unit file and drop-ins, in systemd's own syntax. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_NAMED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_NUMBERS = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")
_PREFIXES = "-+!:"
"""Prefixes of a program in ExecStart= that do not change its argv (`@` does)."""


def exec_argv(texts: Iterable[str], credentials: str) -> tuple[str, ...] | None:
    """The argv of a service's process, by its unit file and then its drop-ins, in that order.

    `credentials`: directory of the service's credentials (`%d`). None if only systemd knows: no or several commands,
    other specifiers, variables, syntax that systemd would refuse.
    """
    commands: list[str] = []
    for text in texts:
        for value in _values(text, "Service", "ExecStart"):
            commands = [*commands, value] if value else []
    if len(commands) != 1:
        return None
    try:
        split = _words(commands[0].lstrip(_PREFIXES))
        words = tuple(_expanded(word, credentials, first=at == 0) for at, word in enumerate(split))
    except ValueError:
        return None
    return words or None


def _values(text: str, section: str, key: str) -> Iterator[str]:
    here, joined = "", ""
    for part in text.splitlines():
        if part.lstrip().startswith(("#", ";")):
            continue
        joined += part
        if joined.endswith("\\"):
            joined = f"{joined[:-1]} "
            continue
        line, joined = joined.strip(), ""
        name, is_assignment, value = line.partition("=")
        if line.startswith("["):
            here = line.strip("[]")
        elif is_assignment and here == section and name.strip() == key:
            yield value.strip()


def _words(value: str) -> Iterator[str]:
    """The words of a command line (src/basic/extract-word.c). Raises ValueError for a quote that is not closed."""
    word, quote, position = None, "", 0
    while position < len(value):
        char = value[position]
        position += 1
        if char == "\\":
            piece, length = _escape(value[position:])
            word, position = (word or "") + piece, position + length
        elif quote:
            word, quote = ((word or ""), "") if char == quote else ((word or "") + char, quote)
        elif char in "\"'":
            quote, word = char, word or ""
        elif char.isspace():
            if word is not None:
                yield word
            word = None
        else:
            word = (word or "") + char
    if quote:
        raise ValueError("a quote is not closed")
    if word is not None:
        yield word


def _escape(rest: str) -> tuple[str, int]:
    """The character that an escape means, and its length after the backslash (src/basic/escape.c).

    Raises ValueError for a backslash at the end.
    """
    if not rest:
        raise ValueError("a backslash at the end")
    if number := _NUMBERS.match(rest):
        digits = number[1] or number[2] or number[3]
        return chr(int(digits, 16) if digits else int(number[4], 8)), len(number[0])
    return _NAMED.get(rest[0], rest[0]), 1


def _expanded(word: str, credentials: str, *, first: bool) -> str:
    """`word` with `%%`, `%d` and (not in the program's name) `$$` expanded. Raises ValueError for other ones."""
    known = {"%%": "%", "$$": "$", "%d": credentials}

    def replacement(mark: re.Match[str]) -> str:
        """The text that systemd puts in place of `mark`."""
        if mark[0] not in known:
            raise ValueError(f"{mark[0]} is for systemd to replace")
        return known[mark[0]]

    return re.sub("%.?" if first else "[%$].?", replacement, word, flags=re.DOTALL)
