"""Values as YAML that every parser reads the same way: block mappings and lists, strings in double quotes. Pure.

YAML 1.1 and 1.2 differ in what a bare word is (`1e6`, `on`, `0o7`), so no string is ever bare, and what is not
printable ASCII is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_./-]+")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null"))
_BEYOND = re.compile(r"[^\x20-\x7e]")


def block_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """`documents`, each begun by `---`. Values are mappings, sequences, strings, booleans, integers, and None."""
    return "".join(f"---\n{_block(document, 0)}" for document in documents)


def _block(value: Any, indent: int) -> str:
    """A mapping or a list that is not empty, in lines of its own."""
    pad = " " * indent
    if isinstance(value, Mapping):
        return "".join(f"{pad}{_key(key)}:{_after(item, indent + 2)}" for key, item in value.items())
    # an item begins on the line of its dash: its block without the padding of its first line
    return "".join(f"{pad}-{_after(item, indent + 2, inline=True)}" for item in value)


def _after(value: Any, indent: int, *, inline: bool = False) -> str:
    if isinstance(value, Mapping | list | tuple) and value:
        block = _block(value, indent)
        return f" {block[indent:]}" if inline else f"\n{block}"
    return f" {_scalar(value)}\n"


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS else _scalar(key)


def _scalar(value: Any) -> str:
    """A scalar, or an empty collection. TypeError for anything else."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, str):
        return _BEYOND.sub(_escape, json.dumps(value, ensure_ascii=False))
    if isinstance(value, Mapping | list | tuple) and not value:
        return "{}" if isinstance(value, Mapping) else "[]"
    raise TypeError(f"{type(value).__name__} has no place in these files")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
