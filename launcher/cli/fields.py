"""Every key of the config, from the types that declare it: `launch explain servers.slots`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

from launcher.cli.reference import declared, explanations
from launcher.cli.terminal import Terminal
from launcher.config.schema import Either, Many, Record, Shape, Table, describe, fields_of
from launcher.ir.config import FleetConfig


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
    """The keys of a record and of what lies below them."""
    meanings = meanings_of(struct)
    for name, field in fields_of(struct).items():
        path = f"{prefix}{name}"
        below, suffix = _record(field.shape)
        about = meanings.get(name, "") or (_first_paragraph(below) if below else "")
        yield Key(path + suffix, describe(field.shape), "" if field.required else _yaml(field.default), about)
        if below is not None:
            yield from _walk(below, f"{path}{suffix}.")


def _record(shape: Shape) -> tuple[type[msgspec.Struct] | None, str]:
    """The record that stands under a key, and how an entry of it is addressed."""
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
    """A default as one would write it."""
    if isinstance(value, msgspec.Struct):
        return "its own"
    return msgspec.json.encode(value).decode().strip('"') or '""'


def _first_paragraph(struct: type[msgspec.Struct]) -> str:
    """What a record is."""
    return " ".join((inspect.getdoc(struct) or "").partition("\n\n")[0].split())


@cache
def _meanings() -> dict[str, str]:
    """`Class.field` → the string that stands below it in the source."""
    return explanations(declared())


def meanings_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What the source says of each field of a record, where it does."""
    prefix = f"{struct.__name__}."
    return {name.removeprefix(prefix): text for name, text in _meanings().items() if name.startswith(prefix)}


def find_keys(wanted: str) -> tuple[Key, ...]:
    """The key of that path, names of entries aside (`servers.chat.slots`), or all that end in it (`slots`)."""
    parts = wanted.split(".")
    paths = {key: key.path.split(".") for key in keys()}
    for fits in (_is, _is_without_names, _is_of_an_entry, _ends):
        found = tuple(key for key, path in paths.items() if fits(path, parts))
        if found:
            return found
    return ()


def _is(path: list[str], parts: list[str]) -> bool:
    """`servers.NAME.slots`."""
    return path == parts


def _is_without_names(path: list[str], parts: list[str]) -> bool:
    """`servers.slots`."""
    return [part for part in path if part not in {"NAME", "0"}] == parts


def _is_of_an_entry(path: list[str], parts: list[str]) -> bool:
    """`servers.chat.slots`."""
    return len(path) == len(parts) and all(a in {b, "NAME", "0"} for a, b in zip(path, parts, strict=True))


def _ends(path: list[str], parts: list[str]) -> bool:
    """`slots`."""
    return path[-len(parts) :] == parts


def show_keys(out: Terminal, found: tuple[Key, ...]) -> None:
    """Keys for people."""
    for key in found:
        default = f"default {key.default}" if key.default else "must be written"
        out.line(f"{out.style(key.path, 'bold')}  {out.style(f'{key.kind}; {default}', 'dim')}")
        if key.meaning:
            out.line(f"  {key.meaning}")
        below = [other for other in keys() if other.path.rpartition(".")[0] == key.path] if len(found) == 1 else []
        width = max((len(other.path) for other in below), default=0) - len(key.path) - 1
        for other in below:
            out.line(f"  {other.path.rpartition('.')[2]:<{width}}  {other.meaning.partition('. ')[0]}".rstrip())
