"""Every key of the config, from the types that declare it: `launch explain servers.slots`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.terminal import Terminal
from launcher.config.schema import Either, Many, Record, Shape, Table, describe, fields_of
from launcher.ir import config
from launcher.ir.config import FleetConfig

_ANY = frozenset({"NAME", "0"})
"""Parts of a path that stand for the name, or the number, of any entry."""


class Key(msgspec.Struct, frozen=True):
    """One key: its dotted path (`servers.NAME.slots`), what it may be, its default as YAML, what it means."""

    path: str
    kind: str
    default: str
    meaning: str


@cache
def keys() -> tuple[Key, ...]:
    """All keys, in the order of the types."""
    return tuple(_walk(FleetConfig, ""))


def _walk(struct: type[msgspec.Struct], prefix: str) -> Iterator[Key]:
    meanings = meanings_of(struct)
    for name, field in fields_of(struct).items():
        path = f"{prefix}{name}"
        below, suffix = _record(field.shape)
        about = meanings.get(name, "") or (first_paragraph(below) if below else "")
        yield Key(path + suffix, describe(field.shape), "" if field.required else _yaml(field.default), about)
        if below is not None:
            yield from _walk(below, f"{path}{suffix}.")


def _record(shape: Shape) -> tuple[type[msgspec.Struct] | None, str]:
    match shape:
        case Record(struct=struct):
            return struct, ""
        case Table(value=value):
            return _record(value)[0], ".NAME"
        case Many(item=item):
            found = _record(item)[0]
            return found, ".0" if found else ""
        case Either(options=options):
            records = (_record(option) for option in options)
            return next((record for record in records if record[0] is not None), (None, ""))
        case _:
            return None, ""


def _yaml(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        return "its own"
    return msgspec.json.encode(value).decode().strip('"') or '""'


def first_paragraph(struct: type[msgspec.Struct]) -> str:
    """The first paragraph of a record's docstring, in one line."""
    return " ".join((inspect.getdoc(struct) or "").partition("\n\n")[0].split())


@cache
def explanations() -> dict[str, str]:
    """`Class.field` → the text below the field in the source of the config types; `Class` → its docstring."""
    found: dict[str, str] = {}
    files = sorted(Path(config.__file__).parent.glob("*.py"))
    for node in (node for path in files for node in ast.parse(path.read_bytes()).body):
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = ast.get_docstring(node) or ""
        for field, below in zip(node.body, node.body[1:], strict=False):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                found[f"{node.name}.{field.target.id}"] = text
    return {name: " ".join(text.split()) for name, text in found.items()}


def meanings_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Field of a record → its text in the source, for fields that have one."""
    prefix = f"{struct.__name__}."
    return {name.removeprefix(prefix): text for name, text in explanations().items() if name.startswith(prefix)}


def find_keys(wanted: str) -> tuple[Key, ...]:
    """The key of that path, also with an entry's name in it (`servers.chat.slots`), or all that end so (`slots`)."""
    parts = wanted.split(".")
    fits = {key: _distance(key.path.split("."), parts) for key in keys()}
    nearest = min((fit for fit in fits.values() if fit is not None), default=None)
    return tuple(key for key, fit in fits.items() if nearest is not None and fit == nearest)


def _distance(path: list[str], parts: list[str]) -> int | None:
    """How exactly `parts` name `path`: 0 as written, 3 by its end only; None: they mean another."""
    if path == parts:  # servers.NAME.slots
        return 0
    if [part for part in path if part not in _ANY] == parts:  # servers.slots
        return 1
    if len(path) == len(parts) and all(
        a == b or a in _ANY for a, b in zip(path, parts, strict=True)
    ):  # servers.chat.slots
        return 2
    return 3 if path[-len(parts) :] == parts else None  # slots


def show_keys(out: Terminal, found: tuple[Key, ...]) -> None:
    """Show keys: type, default, meaning; of a single one also the keys below it."""
    for key in found:
        default = f"default {key.default}" if key.default else "must be written"
        out.line(f"{out.style(key.path, 'bold')}  {out.style(f'{key.kind}; {default}', 'dim')}")
        if key.meaning:
            out.line(f"  {key.meaning}")
        below = [other for other in keys() if other.path.rpartition(".")[0] == key.path] if len(found) == 1 else []
        width = max((len(other.path) for other in below), default=0) - len(key.path) - 1
        for other in below:
            out.line(f"  {other.path.rpartition('.')[2]:<{width}}  {other.meaning.partition('. ')[0]}".rstrip())
