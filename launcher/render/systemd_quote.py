r"""Quoting for systemd unit files. Pure.

Rules: systemd.service(5) "Command lines", systemd.syntax(7) "Quoting"; src/basic/extract-word.c. Words are wrapped in
`"`, with `\` and `"` escaped, newlines and other control characters written as escapes, and `%` doubled (specifiers).
In command lines `$` is doubled too, except in the first word: a program's name is not searched for variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_@/:.,=+-]+")
_NAMED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def quote_word(text: str) -> str:
    """`text` as one word of a unit file's value; plain words stay as they are. No NUL, no lone surrogate."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_escape(c) for c in text).replace("%", "%%") + '"'


def quote_command(argv: Sequence[str]) -> tuple[str, ...]:
    """`argv` as the words of `ExecStart=` and its siblings, still apart, so that lines can be broken between them."""
    return (quote_word(argv[0]), *(quote_word(word).replace("$", "$$") for word in argv[1:]))


def quote_assignments(env: Mapping[str, str]) -> tuple[str, ...]:
    """`env` as words of `Environment=`, sorted; there `$` has no meaning."""
    return tuple(quote_word(f"{name}={env[name]}") for name in sorted(env))


def quote_bind(path: str) -> str:
    r"""`path` as a word of `BindReadOnlyPaths=`, which splits at `:` and has no escapes for control characters."""
    if _PLAIN.fullmatch(path) and ":" not in path:
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def credential_path(path: str) -> str:
    """`path` behind the `:` of `LoadCredential=`, which knows no quotes: only specifiers are replaced there."""
    return path.replace("%", "%%")


def _escape(char: str) -> str:
    """`char` inside double quotes."""
    if char in _NAMED:
        return _NAMED[char]
    if "\x80" <= char <= "\x9f" or char in "\u2028\u2029":  # they end no line for systemd, but for editors and pagers
        return f"\\u{ord(char):04x}"
    return f"\\x{ord(char):02x}" if char < " " or char == "\x7f" else char
