"""One value in a YAML text, with the reason above it; everything else stays as a person wrote it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.author.edit import NotEditableError, keeping_ends, rows_of

MARK = "# sweep "
"""How a reason begins; one that stands above the value is replaced."""


@keeping_ends
def set_value(text: str, path: Sequence[str], value: str, why: str) -> str:
    """`text` with `value` at the keys of `path`, below a comment that begins with MARK.

    Raises NotEditableError where a key on the way is no block of lines, or the value there takes several.
    """
    rows = rows_of(text)
    start, end = 0, len(rows)
    for depth, key in enumerate(path[:-1]):
        at = _find(rows, start, end, key)
        if at is None or _after(rows[at]):
            raise NotEditableError(f"{'.'.join(path[: depth + 1])} is not a block of lines there")
        start, end = at + 1, _end(rows, at, end)
    indent = _indent_of(rows, start, end)
    pad = " " * indent
    new = [f"{pad}{MARK}{why}", f"{pad}{path[-1]}: {value}"]
    at = _find(rows, start, end, path[-1])
    if at is None:
        while end > start and not rows[end - 1].strip():
            end -= 1
        return "\n".join([*rows[:end], *new, *rows[end:]]) + "\n"
    if _end(rows, at, end) > at + 1 and any(_indent(row) > indent for row in rows[at + 1 : _end(rows, at, end)]):
        raise NotEditableError(f"{'.'.join(path)} is written in several lines there")
    first = at - 1 if at > start and rows[at - 1].strip().startswith(MARK.strip()) else at
    return "\n".join([*rows[:first], *new, *rows[at + 1 :]]) + "\n"


def _find(rows: Sequence[str], start: int, end: int, key: str) -> int | None:
    """The line of an entry of the block between `start` and `end`."""
    indent = _indent_of(rows, start, end)
    entry = re.compile(rf" {{{indent}}}(?:\"{re.escape(key)}\"|'{re.escape(key)}'|{re.escape(key)}):(?:\s|$)")
    return next((at for at in range(start, end) if entry.match(rows[at])), None)


def _after(row: str) -> str:
    """What stands behind the key of a line, comments aside."""
    return row.partition(":")[2].partition(" #")[0].strip()


def _end(rows: Sequence[str], at: int, end: int) -> int:
    """Behind the last line of what lies below line `at`."""
    last = at + 1
    for number in range(at + 1, end):
        if rows[number].strip() and not rows[number].lstrip().startswith("#"):
            if _indent(rows[number]) <= _indent(rows[at]):
                break
            last = number + 1
    return last


def _indent_of(rows: Sequence[str], start: int, end: int) -> int:
    """Spaces before the entries of a block; of one without entries, two more than of its key."""
    inner = (row for row in rows[start:end] if row.strip() and not row.lstrip().startswith("#"))
    found = next((row for row in inner if row.strip() != "---"), None)
    if found is not None:
        return _indent(found)
    return _indent(rows[start - 1]) + 2 if start else 0


def _indent(row: str) -> int:
    """Spaces at the beginning of a line."""
    return len(row) - len(row.lstrip(" "))
