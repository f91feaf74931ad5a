"""Quoting for POSIX shell scripts. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence


def shell_lines(argv: Sequence[str]) -> tuple[str, ...]:
    """`argv` quoted for sh, one flag with its values a line, to be joined by a backslash and a line break.

    A new line begins at each word that starts with `-`; negative numbers stay with their flag.
    """
    lines: list[list[str]] = []
    for word in argv:
        is_flag = word.startswith("-") and not word[1:2].isdigit()
        if not lines or is_flag:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return tuple(" ".join(line) for line in lines)


def shell_exports(env: Mapping[str, str]) -> tuple[str, ...]:
    """`env` as `export NAME=value` commands, sorted by name."""
    return tuple(f"export {name}={shlex.quote(env[name])}" for name in sorted(env))
