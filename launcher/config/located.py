"""A plain tree that knows where each of its values was written. Pure.

Merging follows OmegaConf: mappings merge, lists and values replace, `???` (to be filled in) never replaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.errors import Location

MISSING = "???"
"""A value that somebody else must write (OmegaConf's MISSING)."""


class Absent:
    """The value of a key that is not there."""


ABSENT = Absent()


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
        self._merge(target, values, package, here)

    def merge_at(self, target: dict[Any, Any], values: Mapping[Any, Any], key: str, location: Location) -> None:
        """Merge `values`, all written at `location`, into the mapping `target` that stands at dotted `key`."""
        self._merge(target, values, key, _Everywhere(location))

    def put(self, target: dict[Any, Any] | list[Any], part: Any, value: Any, key: str, location: Location) -> None:
        """Replace what stands at `target[part]`, dotted `key`, by `value`, all of it written at `location`."""
        self.forget(key)
        target[part] = self._graft(value, key, _Everywhere(location))

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

    def _merge(
        self, target: dict[Any, Any], values: Mapping[Any, Any], key: str, marks: Mapping[str, Location]
    ) -> None:
        """Merge `values` into `target`."""
        for name, value in values.items():
            dotted = joined(key, name)
            old = target.get(name, ABSENT)
            if isinstance(value, dict) and isinstance(old, dict):
                if dotted in marks:
                    self.locations.setdefault(dotted, marks[dotted])
                self._merge(old, value, dotted, marks)
                continue
            if old is not ABSENT and isinstance(value, str) and value == MISSING:
                continue
            if isinstance(old, dict | list):
                self.forget(dotted)
            target[name] = self._graft(value, dotted, marks)

    def _graft(self, value: Any, key: str, marks: Mapping[str, Location]) -> Any:
        """A copy of `value` with its locations noted: later merges must not change the file it came from."""
        if key in marks:
            self.locations[key] = marks[key]
        if isinstance(value, dict):
            return {name: self._graft(v, joined(key, name), marks) for name, v in value.items()}
        if isinstance(value, list):
            return [self._graft(v, joined(key, i), marks) for i, v in enumerate(value)]
        return value


class _Everywhere(dict[str, Location]):
    """Marks of values that were all written at one place."""

    def __init__(self, location: Location) -> None:
        super().__init__()
        self.location = location

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> Location:
        return self.location


def child(node: Any, part: str) -> Any:
    """What stands under `part` of a mapping or (by index) a list; ABSENT otherwise."""
    if isinstance(node, dict):
        return node.get(part, ABSENT)
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    return ABSENT


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
