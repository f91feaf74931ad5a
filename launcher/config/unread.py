"""Why Hydra's grammar refuses an override, in plain words: its parser speaks of tokens. Pure."""

from __future__ import annotations

import re

_PAIRS = {"]": "[", "}": "{", ")": "("}
_KEY = re.compile(r"(\+\+?|~)?[A-Za-z_][\w.$-]*(/[A-Za-z_][\w./-]*)?(@:?[\w./-]*)?")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_CALL = re.compile(r"\w+ while evaluating ('.*?'): (.+)")


def why_unread(text: str, error: str) -> str:
    """The reason that `text` is no override; `error` is what Hydra's parser or a function in it said."""
    key, equals, value = text.partition("=")
    called = _CALL.match(error)
    if called is not None:
        return f"{called[1]} cannot be evaluated: {called[2]}"
    if not key.strip().lstrip("+~"):
        return "no key stands before the `=`" if equals else "it names no key"
    if not _KEY.fullmatch(key.strip()) or key.strip().endswith("."):
        return f"{key.strip()!r} cannot be a key: names of letters, digits, - and _, with dots between them"
    if not equals:
        return "what follows the key does not belong here"
    unquoted = _QUOTED.sub("", value)
    if "'" in unquoted or '"' in unquoted:
        return "a quote is opened and not closed"
    bracket = _unmatched(unquoted)
    if bracket:
        return f"a bracket has no partner: {bracket}"
    if set(unquoted) & set("[{("):
        return "a list is [a,b], a mapping is {k: v}, and what has special characters is quoted"
    return "the value has a character that must be quoted"


def _unmatched(text: str) -> str:
    """The first bracket of `text` that is closed but not open, or the last that is open and never closed."""
    open_brackets: list[str] = []
    for character in text:
        if character in _PAIRS.values():
            open_brackets.append(character)
        elif character in _PAIRS and (not open_brackets or open_brackets.pop() != _PAIRS[character]):
            return character
    return open_brackets[-1] if open_brackets else ""
