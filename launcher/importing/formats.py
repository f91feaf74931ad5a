"""Detect the format of a file, and translate it. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import yaml

from launcher.importing.llama_swap import from_llama_swap
from launcher.importing.others import from_compose, from_preset, from_script, from_unit
from launcher.importing.result import Flags, Imported

FORMATS = ("llama-swap", "preset", "script", "unit", "compose")


VALUES_MAX = 100_000
"""Values that aliases in a small text may expand to; a longer one has as many as it has characters at most."""


class UnknownFormatError(ValueError):
    """A file that is of none of the formats; the text says why."""


def format_of(name: str, text: str) -> str:
    """The format, by the file's name and by what is in it. Raises UnknownFormatError."""
    suffix = posixpath.splitext(name)[1].lower()
    by_suffix = {".ini": "preset", ".service": "unit", ".sh": "script", ".bash": "script"}
    if suffix in by_suffix:
        return by_suffix[suffix]
    if suffix in {".yaml", ".yml"}:
        tree = _tree(text)
        models, services = tree.get("models"), tree.get("services")
        if isinstance(models, dict):
            return "llama-swap"
        if isinstance(services, dict):
            return "compose"
        raise UnknownFormatError("it is YAML, and neither llama-swap's (`models`) nor a compose file (`services`)")
    if "ExecStart=" in text:
        return "unit"
    if "llama-server" in text:
        return "script"
    raise UnknownFormatError(f"it is none of {', '.join(FORMATS)}")


def translate(name: str, text: str, flags: Flags, env: Mapping[str, str], kind: str | None = None) -> Imported:
    """The servers of the file `name` with this text, as `kind` or as what it looks like. Raises UnknownFormatError."""
    kind = kind or format_of(name, text)
    if kind == "llama-swap":
        return from_llama_swap(_tree(text), flags, env)
    if kind == "compose":
        return from_compose(_tree(text), flags, env)
    if kind == "preset":
        return from_preset(text, flags)
    if kind == "unit":
        stem = posixpath.splitext(posixpath.basename(name))[0].partition("@")[0]
        return from_unit(text, flags, env, name=stem if stem not in {"llama-server", "llama"} else "")
    return from_script(text, flags, env)


def _tree(text: str) -> dict[Any, Any]:
    """A YAML text as a mapping. Raises UnknownFormatError."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UnknownFormatError(f"it is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(tree, dict):
        raise UnknownFormatError("it is YAML without keys at its top")
    left, todo = max(VALUES_MAX, len(text)), [tree]
    while todo:
        value = todo.pop()
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left -= 1
        if left < 0:
            raise UnknownFormatError("its aliases expand to too many values")
    return tree
