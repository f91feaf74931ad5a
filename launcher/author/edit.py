"""Edits of a fleet file's text that leave everything else as a person wrote it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import yaml

_KEY = r"(?:servers|'servers'|\"servers\")\s*:"
_SERVERS = re.compile(rf"{_KEY}\s*(?:&\S+\s*)?(?:#.*)?$")
_EMPTY = re.compile(rf"({_KEY})\s*(?:\{{\s*\}}|null|~)\s*(?:#.*)?$")
_OWN = r"( *# .*: \d[\d,.]* [KMG]iB(?:, some layers in RAM)?, )"
OURS = re.compile(rf"{_OWN}(always up|up first, then takes turns|takes turns[^;]*|on demand[^;]*)(; .*)")
"""The comment that `server_lines` writes above an entry: what it is, when it is up, and its context."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""As the config is read: it takes tabs behind a colon, which PyYAML's own does not."""
_BOM = "\ufeff"
_P = ParamSpec("_P")


class NotEditableError(ValueError):
    """A text whose `servers:` is no block of lines; the text says which."""


def keeping_ends(edit: Callable[Concatenate[str, _P], str]) -> Callable[Concatenate[str, _P], str]:
    """`edit` of a text whose lines may end as on any system: those that it leaves alone keep their bytes."""

    @wraps(edit)
    def edited(text: str, /, *args: _P.args, **kwargs: _P.kwargs) -> str:
        if "\r" not in text and not text.startswith(_BOM):
            return edit(text, *args, **kwargs)
        mark = _BOM if text.startswith(_BOM) else ""
        old = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text.removeprefix(_BOM))
        bare = [row.rstrip("\r\n") for row in old]
        new = rows_of(edit("".join(f"{row}\n" for row in bare), *args, **kwargs))
        ends = [row[len(row.rstrip("\r\n")) :] for row in old]
        end = max(("\n", "\r\n", "\r"), key=ends.count)
        most = min(len(bare), len(new))
        top = next((i for i in range(most) if bare[i] != new[i]), most)
        low = next((i for i in range(most - top) if bare[-1 - i] != new[-1 - i]), most - top)
        kept = [*ends[:top], *[end] * (len(new) - top - low), *ends[len(ends) - low :]]
        return mark + "".join(row + (last or end) for row, last in zip(new, kept, strict=True))

    return edited


def rows_of(text: str) -> list[str]:
    """The lines of a text; only a line feed ends one."""
    return text.removesuffix("\n").split("\n") if text else []


def tree_of(text: str) -> dict[Any, Any]:
    """The mapping that a text is. Raises NotEditableError where it is none."""
    try:
        tree = yaml.load(text, _LOADER)  # noqa: S506 # a safe one
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise NotEditableError(f"not YAML: {' '.join(str(error).split())[:200]}") from None
    return tree if isinstance(tree, dict) else {}


def servers_of(text: str) -> dict[Any, Any]:
    """The entries of `servers:`. Raises NotEditableError where the text is no YAML."""
    found = tree_of(text).get("servers")
    return found if isinstance(found, dict) else {}


@keeping_ends
def add_server(text: str, lines: Sequence[str]) -> str:
    """`text` with the lines of one server (indented by two) behind the last one of its `servers:` block.

    Raises NotEditableError where `servers:` is written in one line.
    """
    before = tree_of(text)
    new = next(iter(servers_of("\n".join(["servers:", *lines]))))
    rows = rows_of(text)
    at = _servers_at(rows)
    if at is None:
        end = next((i for i in range(len(rows)) if rows[i].rstrip() == "..."), len(rows))
        return _only("\n".join([*rows[:end], "servers:", *lines, *rows[end:]]) + "\n", before, new)
    if empty := _EMPTY.match(rows[at]):
        rows[at] = f"{empty[1]}{_comment_of(rows[at])}"
    end = _block_end(rows, at)
    indent = _entry_indent(rows, at, end)
    moved = [f"{' ' * (indent - 2)}{line}" if indent >= 2 else line.removeprefix(" " * (2 - indent)) for line in lines]
    return _only("\n".join([*rows[:end], *moved, *rows[end:]]) + "\n", before, new)


def _only(after: str, before: dict[Any, Any], new: Any) -> str:
    """`after`, where it says what `before` does and has the server `new`. Raises NotEditableError."""
    tree = tree_of(after)
    found = tree.get("servers")
    if not isinstance(found, dict) or found.pop(new, None) is None or _told(tree) != _told(before):
        raise NotEditableError(f"the place for {new} below `servers:` is written in a way that is not edited")
    return after


def _told(tree: dict[Any, Any]) -> dict[Any, Any]:
    """A tree in which no servers are an empty mapping."""
    return {**tree, "servers": tree.get("servers") or {}}


@keeping_ends
def remove_server(text: str, name: str) -> str:
    """`text` without the server `name` and the comment right above it: of one that we wrote, that line alone.

    Raises NotEditableError where it is not an entry of its own in a block, or where others need what stands in it.
    """
    rows, before = rows_of(text), tree_of(text)
    at, first, last = find_entry(rows, name)
    indent, ours = indent_of(rows[first]), OURS.fullmatch(rows[first - 1])
    while first - 1 > at and rows[first - 1].lstrip().startswith("#") and indent_of(rows[first - 1]) == indent:
        first -= 1
        if ours:
            break
    kept = [*rows[:first], *rows[last:]]
    if not any(
        indent_of(row) and row.strip() and not row.lstrip().startswith("#")
        for row in kept[at + 1 : _block_end(kept, at)]
    ):
        kept[at] = f"{kept[at].partition(':')[0]}: {{}}{_comment_of(kept[at])}"
    after = "\n".join(kept) + "\n"
    before["servers"] = {key: entry for key, entry in before["servers"].items() if str(key) != name}
    try:
        same = _told(tree_of(after)) == before
    except NotEditableError:
        same = False
    if not same:
        raise NotEditableError(f"others need what stands in {name}, or it is written in a way that is not edited")
    return after


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
    for number in range(last, end):
        deeper, row = indent_of(rows[number]) > indent, rows[number].strip()
        if row and not deeper and not row.startswith("#"):
            break
        if row and deeper:  # a comment further left, with more of the entry behind it, is in its midst
            last = number + 1
    return at, first, last


def _servers_at(rows: Sequence[str]) -> int | None:
    """The line that says `servers:` with a block, or nothing, below it."""
    for number, row in enumerate(rows):
        if _SERVERS.match(row) or _EMPTY.match(row):
            return number
        if re.match(_KEY, row):
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
