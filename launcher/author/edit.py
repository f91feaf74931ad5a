"""Edits of a fleet file's text that leave everything else as a person wrote it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SERVERS = re.compile(r"servers:\s*(?:#.*)?$")
_EMPTY = re.compile(r"servers:\s*(?:\{\s*\}|null|~)\s*(?:#.*)?$")


class NotEditableError(ValueError):
    """A text whose `servers:` is no block of lines; the text says which."""


def add_server(text: str, lines: Sequence[str]) -> str:
    """`text` with the lines of one server (indented by two) behind the last one of its `servers:` block.

    Raises NotEditableError where `servers:` is written in one line.
    """
    rows = text.splitlines()
    at = _servers_at(rows)
    if at is None:
        return "\n".join([*rows, "servers:", *lines]) + "\n"
    if _EMPTY.match(rows[at]):
        rows[at] = f"servers:{_comment_of(rows[at])}"
    end = _block_end(rows, at)
    indent = _entry_indent(rows, at, end)
    moved = [f"{' ' * (indent - 2)}{line}" if indent >= 2 else line.removeprefix(" " * (2 - indent)) for line in lines]
    return "\n".join([*rows[:end], *moved, *rows[end:]]) + "\n"


def remove_server(text: str, name: str) -> str:
    """`text` without the server `name` and the comment that stands right above it.

    Raises NotEditableError where it is not an entry of its own in a block.
    """
    rows = text.splitlines()
    at, first, last = find_entry(rows, name)
    indent = indent_of(rows[first])
    while first - 1 > at and rows[first - 1].lstrip().startswith("#") and indent_of(rows[first - 1]) == indent:
        first -= 1
    kept = [*rows[:first], *rows[last:]]
    if not any(
        indent_of(row) and row.strip() and not row.lstrip().startswith("#")
        for row in kept[at + 1 : _block_end(kept, at)]
    ):
        kept[at] = f"servers: {{}}{_comment_of(kept[at])}"
    return "\n".join(kept) + "\n"


def find_entry(rows: Sequence[str], name: str) -> tuple[int, int, int]:
    """The line that says `servers:`, the first one of the server `name`, and the one behind its last.

    Raises NotEditableError where it is not an entry of its own in a block.
    """
    at = _servers_at(rows)
    if at is None:
        raise NotEditableError("there is no block of servers")
    end = _block_end(rows, at)
    indent = _entry_indent(rows, at, end)
    entry = re.compile(rf" {{{indent}}}(?:\"{re.escape(name)}\"|'{re.escape(name)}'|{re.escape(name)}):(?:\s|$)")
    first = next((i for i in range(at + 1, end) if entry.match(rows[i])), None)
    if first is None:
        raise NotEditableError(f"{name} is not an entry of its own below `servers:`")
    last = first + 1
    while last < end and (not rows[last].strip() or indent_of(rows[last]) > indent):
        last += 1
    while last - 1 > first and not rows[last - 1].strip():
        last -= 1
    return at, first, last


def _servers_at(rows: Sequence[str]) -> int | None:
    """The line that says `servers:` with a block, or nothing, below it."""
    for number, row in enumerate(rows):
        if _SERVERS.match(row) or _EMPTY.match(row):
            return number
        if row.startswith("servers:"):
            raise NotEditableError("`servers:` is written in one line: put each server on lines of its own below it")
    return None


def _block_end(rows: Sequence[str], at: int) -> int:
    """Behind the last line that belongs to the block of line `at`; comments at the margin after it do not."""
    end = at + 1
    for number in range(at + 1, len(rows)):
        row = rows[number]
        if not row.strip() or (row.startswith("#")):
            continue
        if not indent_of(row):
            break
        end = number + 1
    return end


def _entry_indent(rows: Sequence[str], at: int, end: int) -> int:
    """Spaces before the entries of the block between `at` and `end`; two where it has none."""
    inner = (row for row in rows[at + 1 : end] if row.strip() and not row.lstrip().startswith("#"))
    return next(map(indent_of, inner), 2)


def _comment_of(row: str) -> str:
    """The comment at the end of a `servers:` line, with a space before it."""
    return f"  #{row.partition('#')[2]}" if "#" in row else ""


def indent_of(row: str) -> int:
    """Spaces at the beginning of a line."""
    return len(row) - len(row.lstrip(" "))
