"""Put servers of a fleet file into an exclusive group, and take them out again, in its text. Pure.

Nothing that a person wrote is changed. Lines below a comment of ours are ours if they are as we write them; a line that
is added to a person's entry ends in a comment that begins with `MARK`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from launcher.author.edit import (
    OURS,
    NotEditableError,
    find_entry,
    indent_of,
    keep_line_ends,
    require_content,
    rows_of,
    says_something,
    servers_of,
    tree_of,
)
from launcher.author.text import scalar

MARK = "# launch add: "
ALWAYS = "always up"
TURNS_WORDS = "takes turns"
_PLAIN = re.compile(r"( *[^\s#][^#]*?):\s+([^\s{\[&*!|>].*)")
_FLOW = re.compile(r"( *[^\s#][^#{]*?: *\{.*?\S) *\}( *(?:#.*)?)")


@keep_line_ends
def share(text: str, name: str, group: str, why: str, *, over: bool = False) -> str:
    """Put the server `name` into the exclusive group `group`, with `why` as a comment.

    Raises NotEditableError if its entry cannot be edited, or names another group; with `over` that group is replaced.
    """
    key, before = _entry(text, name)
    if before.get("exclusive") == group:
        return text
    if "exclusive" in before and not over:
        raise NotEditableError(f"servers.{name}.exclusive is written there: {before['exclusive']}")
    rows = rows_of(text)
    _, first, last = find_entry(rows, name)
    if "exclusive" in before:
        rows[first:last] = [_replaced(row, group) for row in rows[first:last]]
    else:
        rows[first:last] = _with_group(rows[first:last], group, f"  {MARK}{why}")
    up = "tier" in before or any(_is_up(other, group) for other in servers_of(text).values())
    _set_note(rows, first, TURNS_WORDS if up else f"up first, then {TURNS_WORDS}")
    wanted = tree_of(text)
    wanted["servers"][key] = {**before, "exclusive": group}
    return require_content("\n".join(rows) + "\n", wanted, f"servers.{name} is written in a way that is not edited")


@keep_line_ends
def leave_group(text: str, group: str) -> str:
    """Remove what we wrote about the exclusive group `group` if only one server is left in it.

    What a person wrote stays; a group without servers, or with several, is left alone.
    """
    names = [str(name) for name, entry in servers_of(text).items() if _is_in(entry, group)]
    if len(names) != 1:
        return text
    rows = rows_of(text)
    _, first, last = find_entry(rows, names[0])
    line, entry = f"exclusive: {scalar(group)}", rows[first:last]
    if first and OURS.fullmatch(rows[first - 1]) and line in map(str.strip, entry):
        kept = [row for row in entry if row.strip() not in {line, "tier: warm", "default: true"}]
    else:
        kept = [_unmarked(row, line) for row in entry if not (row.lstrip().startswith(line) and MARK in row)]
    if kept == entry:
        return text
    rows[first:last] = kept
    _set_note(rows, first, ALWAYS)
    return "\n".join(rows) + "\n"


def _is_in(entry: Any, group: str) -> bool:
    return isinstance(entry, dict) and entry.get("exclusive") == group


def _is_up(entry: Any, group: str) -> bool:
    return _is_in(entry, group) and entry.get("tier", "hot") == "hot"


def _entry(text: str, name: str) -> tuple[Any, dict[Any, Any]]:
    """Key and entry of a server; an entry that is only a path becomes its `file`. Raises NotEditableError."""
    key, entry = next(((key, value) for key, value in servers_of(text).items() if str(key) == name), (name, None))
    if isinstance(entry, str):
        entry = {"file": entry}
    if not isinstance(entry, dict):
        raise NotEditableError(f"{name} is not an entry of its own below `servers:`")
    return key, entry


def _with_group(rows: Sequence[str], group: str, mark: str) -> list[str]:
    """The lines of an entry with its group added, also for an entry that is a path or a mapping in one line."""
    pad = " " * (indent_of(rows[0]) + 2)
    if len(rows) == 1 and (flow := _FLOW.fullmatch(rows[0])):
        return [f"{flow[1]}, exclusive: {scalar(group)}}}{flow[2]}{mark}"]
    if len(rows) == 1 and (plain := _PLAIN.fullmatch(rows[0])):
        return [f"{plain[1]}:", f"{pad}file: {plain[2]}", f"{pad}exclusive: {scalar(group)}{mark}"]
    inner = next(filter(says_something, rows[1:]), pad)
    return [*rows, f"{' ' * indent_of(inner)}exclusive: {scalar(group)}{mark}"]


def _replaced(row: str, group: str) -> str:
    """The line with another group, if it names one; a comment at its end stays."""
    return re.sub(r"(\bexclusive:\s*)[^\s,}#]+", lambda found: f"{found[1]}{scalar(group)}", row)


def _unmarked(row: str, line: str) -> str:
    """A mapping in one line without what `share` added to it."""
    return row.partition(f"  {MARK}")[0].replace(f", {line}}}", "}") if MARK in row else row


def _set_note(rows: list[str], first: int, words: str) -> None:
    """Put `words` into our comment above line `first`, if there is one."""
    note = OURS.fullmatch(rows[first - 1]) if first else None
    if note:
        rows[first - 1] = f"{note[1]}{words}{note[3]}"
