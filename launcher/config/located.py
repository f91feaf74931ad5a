"""A plain tree that knows where each of its values was written; findings get the location of their key. Pure.

Merging follows OmegaConf: mappings merge, lists and values replace, `???` (to be filled in) never replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from launcher.errors import Finding, Location
from launcher.ir.config import SourceMap

MISSING = "???"
"""A value that somebody else must write (OmegaConf's MISSING)."""


ABSENT: Any = object()
"""The value of a key that is not there."""


Written = Callable[[str], Location | None]
"""A dotted key → where its value was written, if anywhere."""

SHOWN_CHARACTERS = 500
"""Characters of a message or a note that are shown: users paste whole files into values."""


def joined(prefix: str, part: object) -> str:
    """`prefix.part`, or `part` at the top."""
    return f"{prefix}.{part}" if prefix else str(part)


class LocatedTree:
    """A tree under construction: `tree` and, for each dotted key, the location of what won."""

    def __init__(self) -> None:
        self.tree: dict[Any, Any] = {}
        self.locations: dict[str, Location] = {}

    def embed(self, values: Mapping[Any, Any], package: str, marks: Mapping[str, Location]) -> None:
        """Merge one file's `values` at dotted `package`; `marks` has the file's own dotted keys."""
        here = {joined(package, key) if key else package: mark for key, mark in marks.items()}
        target = self.tree
        for part in package.split(".") if package else ():
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        if package:
            self.locations.setdefault(package, marks[""])
        self._merge(target, values, package, here.get)

    def put(self, target: dict[Any, Any] | list[Any], part: Any, value: Any, key: str, location: Location) -> None:
        """Write `value`, all of it from `location`, at `target[part]`, dotted `key`; a mapping merges into another."""
        present = child(target, str(part))
        if isinstance(value, dict) and isinstance(present, dict):
            self._merge(present, value, key, lambda _: location)
        else:
            self.forget(key)
            target[part] = self._graft(value, key, lambda _: location)

    def forget(self, key: str) -> None:
        """Drop the locations of `key` and of everything under it."""
        below = f"{key}."
        for known in [k for k in self.locations if k == key or k.startswith(below)]:
            del self.locations[known]

    def find(self, parts: Sequence[str]) -> Any:
        """The value at `parts`; ABSENT when there is none."""
        node: Any = self.tree
        for part in parts:
            node = child(node, part)
            if node is ABSENT:
                return ABSENT
        return node

    def _merge(self, target: dict[Any, Any], values: Mapping[Any, Any], key: str, written: Written) -> None:
        for name, value in values.items():
            dotted = joined(key, name)
            old = target.get(name, ABSENT)
            if isinstance(value, dict) and isinstance(old, dict):
                place = written(dotted)
                if place is not None:
                    self.locations.setdefault(dotted, place)
                self._merge(old, value, dotted, written)
                continue
            if old is not ABSENT and isinstance(value, str) and value == MISSING:
                continue
            if isinstance(old, dict | list):
                self.forget(dotted)
            target[name] = self._graft(value, dotted, written)

    def _graft(self, value: Any, key: str, written: Written) -> Any:
        """A copy of `value` with its locations noted: later merges must not change the file it came from."""
        place = written(key)
        if place is not None:
            self.locations[key] = place
        if isinstance(value, dict):
            return {name: self._graft(v, joined(key, name), written) for name, v in value.items()}
        if isinstance(value, list):
            return [self._graft(v, joined(key, i), written) for i, v in enumerate(value)]
        return value


def child(node: Any, part: str) -> Any:
    """The value under `part` of a mapping or (by index) a list; ABSENT otherwise."""
    if isinstance(node, dict):
        return node.get(part, ABSENT)
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    return ABSENT


def mapping_at(node: Any, name: Any) -> dict[Any, Any]:
    """The mapping under `name` of a mapping; an empty one, which is not the tree's, where there is none."""
    below = node.get(name) if isinstance(node, dict) and isinstance(name, str) else None
    return below if isinstance(below, dict) else {}


def flatten(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every value as (dotted key, value), in the tree's order; lists of plain values and empty mappings are values."""
    flat: list[tuple[str, Any]] = []

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and (node or not key):
            for name, value in node.items():
                walk(value, joined(key, name))
        elif isinstance(node, list) and any(isinstance(item, dict | list) for item in node):
            for i, item in enumerate(node):
                walk(item, joined(key, i))
        else:
            flat.append((key, node))

    walk(dict(tree), "")
    return flat


def locate(findings: Iterable[Finding], sources: SourceMap, default: Location | None = None) -> tuple[Finding, ...]:
    """The findings with `location` filled in from `key`.

    It is where the key was written, or its nearest written ancestor, or the first thing below it. Findings that have
    a location keep it; those whose key was written nowhere get `default`.
    """
    return tuple(
        f if f.location else msgspec.structs.replace(f, location=_find(f.key, sources, default)) for f in findings
    )


def shortened(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without the middle of texts longer than `SHOWN_CHARACTERS`, and without fixes that long."""
    return [
        msgspec.structs.replace(
            f,
            message=_short(f.message),
            notes=tuple(_short(note) for note in f.notes),
            fixes=tuple(fix for fix in f.fixes if len(fix.override) <= SHOWN_CHARACTERS),
        )
        for f in findings
    ]


def _short(text: str) -> str:
    """`text` with its beginning and its end: a huge value is in the middle of what is said about it."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 151]}…{text[-150:]}"


def _find(key: str, sources: SourceMap, default: Location | None) -> Location | None:
    found = sources.find(key)
    if found is None and key:
        found = next((at for known, at in sources.locations.items() if known.startswith(f"{key}.")), None)
    return found or default
