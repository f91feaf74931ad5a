"""Edit a fleet file's text and leave everything else as a person wrote it. Pure."""

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
REASON = "# sweep "
"""Beginning of the comment that `set_value` writes above a value."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader that config is read with: it takes tabs after a colon, which PyYAML's own does not."""
_BOM = "\ufeff"
_P = ParamSpec("_P")


class NotEditableError(ValueError):
    """The text cannot be edited, such as a `servers:` in one line; the message says why."""


def keep_line_ends(edit: Callable[Concatenate[str, _P], str]) -> Callable[Concatenate[str, _P], str]:
    """Let `edit` work on texts with any line ends and a BOM; lines that it leaves alone keep their bytes."""

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
    """The lines of a text; only a line feed ends a line."""
    return text.removesuffix("\n").split("\n") if text else []


def tree_of(text: str) -> dict[Any, Any]:
    """The mapping in a YAML text; {} if it is something else. Raises NotEditableError for a text that is no YAML."""
    try:
        tree = yaml.load(text, _LOADER)  # noqa: S506 # a safe one
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise NotEditableError(f"not YAML: {' '.join(str(error).split())[:200]}") from None
    return tree if isinstance(tree, dict) else {}


def servers_of(text: str) -> dict[Any, Any]:
    """The entries of `servers:`; {} if there are none. Raises NotEditableError for a text that is no YAML."""
    found = tree_of(text).get("servers")
    return found if isinstance(found, dict) else {}


def require_content(after: str, wanted: dict[Any, Any], why: str) -> str:
    """Return `after` if its content is `wanted`. Raises NotEditableError with `why` otherwise."""
    try:
        tree = tree_of(after)
    except NotEditableError:
        tree = {}
    if {**tree, "servers": tree.get("servers") or {}} != wanted:
        raise NotEditableError(why)
    return after


@keep_line_ends
def add_server(text: str, lines: Sequence[str]) -> str:
    """Add the lines of one server (indented by two) after the last one of the `servers:` block of `text`.

    Raises NotEditableError if `servers:` is written in one line, or the result would not say what it should.
    """
    servers, (new, entry) = servers_of(text), *servers_of("\n".join(["servers:", *lines])).items()
    why = f"the place for {new} below `servers:` is written in a way that is not edited"
    if new in servers:
        raise NotEditableError(why)
    rows = rows_of(text)
    at = _servers_at(rows)
    if at is None:
        end = next((i for i in range(len(rows)) if rows[i].rstrip() == "..."), len(rows))
        moved = ["servers:", *lines]
    else:
        if empty := _EMPTY.match(rows[at]):
            rows[at] = f"{empty[1]}{_comment_of(rows[at])}"
        end = block_end(rows, at, len(rows))
        indent = entry_indent(rows, at + 1, end)
        pad = " " * (indent - 2)
        moved = [f"{pad}{line}" if indent >= 2 else line.removeprefix(" " * (2 - indent)) for line in lines]
    wanted = {**tree_of(text), "servers": {**servers, new: entry}}
    return require_content("\n".join([*rows[:end], *moved, *rows[end:]]) + "\n", wanted, why)


@keep_line_ends
def remove_server(text: str, name: str) -> str:
    """Remove the server `name` and the comment right above it; if the line above is ours, only that line of it.

    Raises NotEditableError if it is not an entry of its own in a block, or if others need what stands in it.
    """
    rows, wanted = rows_of(text), tree_of(text)
    at, first, last = find_entry(rows, name)
    indent, ours = indent_of(rows[first]), OURS.fullmatch(rows[first - 1])
    while first - 1 > at and rows[first - 1].lstrip().startswith("#") and indent_of(rows[first - 1]) == indent:
        first -= 1
        if ours:
            break
    kept = [*rows[:first], *rows[last:]]
    if not any(indent_of(row) and says_something(row) for row in kept[at + 1 : block_end(kept, at, len(kept))]):
        kept[at] = f"{kept[at].partition(':')[0]}: {{}}{_comment_of(kept[at])}"
    wanted["servers"] = {key: entry for key, entry in wanted["servers"].items() if str(key) != name}
    why = f"others need what stands in {name}, or it is written in a way that is not edited"
    return require_content("\n".join(kept) + "\n", wanted, why)


@keep_line_ends
def set_value(text: str, path: Sequence[str], value: str, why: str) -> str:
    """Set `value` at the keys of `path`, below a comment that begins with REASON and replaces an earlier one.

    Raises NotEditableError if a key on the way is no block of lines, or the present value takes several lines.
    """
    rows = rows_of(text)
    start, end = 0, len(rows)
    for depth, key in enumerate(path[:-1]):
        at = entry_at(rows, start, end, key)
        if at is None or rows[at].partition(":")[2].partition(" #")[0].strip():
            raise NotEditableError(f"{'.'.join(path[: depth + 1])} is not a block of lines there")
        start, end = at + 1, block_end(rows, at, end)
    indent = entry_indent(rows, start, end)
    new = [f"{' ' * indent}{REASON}{why}", f"{' ' * indent}{path[-1]}: {value}"]
    at = entry_at(rows, start, end, path[-1])
    if at is None:
        while end > start and not rows[end - 1].strip():
            end -= 1
        return "\n".join([*rows[:end], *new, *rows[end:]]) + "\n"
    if any(says_something(row) and indent_of(row) > indent for row in rows[at + 1 : block_end(rows, at, end)]):
        raise NotEditableError(f"{'.'.join(path)} is written in several lines there")
    first = at - 1 if at > start and rows[at - 1].strip().startswith(REASON.strip()) else at
    return "\n".join([*rows[:first], *new, *rows[at + 1 :]]) + "\n"


def find_entry(rows: Sequence[str], name: str) -> tuple[int, int, int]:
    """Indices of the line `servers:`, of the first line of the server `name`, and of the line after its last one.

    Raises NotEditableError if it is not an entry of its own in a block.
    """
    at = _servers_at(rows)
    if at is None:
        raise NotEditableError("there is no block of servers")
    end = block_end(rows, at, len(rows))
    first = entry_at(rows, at + 1, end, name)
    if first is None:
        raise NotEditableError(f"{name} is not an entry of its own below `servers:`")
    return at, first, block_end(rows, first, end)


def _servers_at(rows: Sequence[str]) -> int | None:
    """Index of the line `servers:` with a block, or nothing, below it; None: there is none.

    Raises NotEditableError if `servers:` is written in one line.
    """
    for number, row in enumerate(rows):
        if _SERVERS.match(row) or _EMPTY.match(row):
            return number
        if re.match(_KEY, row):
            raise NotEditableError("`servers:` is written in one line: put each server on lines of its own below it")
    return None


def entry_at(rows: Sequence[str], start: int, end: int, key: str) -> int | None:
    """Index of the line of the entry `key` in the block between `start` and `end`; None: it is not there."""
    indent, name = entry_indent(rows, start, end), re.escape(key)
    entry = re.compile(rf" {{{indent}}}(?:\"{name}\"|'{name}'|{name}):(?:\s|$)")
    return next((at for at in range(start, end) if entry.match(rows[at])), None)


def block_end(rows: Sequence[str], at: int, end: int) -> int:
    """Index after the last line, before `end`, that belongs to the block below line `at`.

    A comment that is indented less is part of the block if more of the block follows, else not.
    """
    last, indent = at + 1, indent_of(rows[at])
    for number in range(last, end):
        deeper = indent_of(rows[number]) > indent
        if not deeper and says_something(rows[number]):
            break
        if deeper and rows[number].strip():
            last = number + 1
    return last


def entry_indent(rows: Sequence[str], start: int, end: int) -> int:
    """Spaces before the entries of a block; for one without entries, two more than before its key."""
    inner = (row for row in rows[start:end] if says_something(row) and row.strip() != "---")
    return next(map(indent_of, inner), indent_of(rows[start - 1]) + 2 if start else 0)


def says_something(row: str) -> bool:
    """Whether a line has more than spaces and a comment."""
    return bool(row.strip()) and not row.lstrip().startswith("#")


def indent_of(row: str) -> int:
    """Spaces at the beginning of a line."""
    return len(row) - len(row.lstrip(" "))


def _comment_of(row: str) -> str:
    return f"  #{row.partition('#')[2]}" if "#" in row else ""
