"""Short forms of the config and the whole value that each stands for. Pure.

`chat: ~/models/x.gguf` is a server, `qwen: x.gguf` a model, `q8_0: x.gguf` a file of one; `~` and `$HOME` at the
beginning of a path are the user's home.
"""

from __future__ import annotations

from typing import Any

from launcher.config.located import LocatedTree

PATHS = frozenset(
    {
        *("path", "file", "projector", "model_dir", "binary", "library_path", "state_dir", "slot_save_path"),
        *("output_dir", "chat_template_file"),
    }
)
"""Keys whose values are paths. Not the front's files: who starts it has another home, so `~` is refused there."""

_HOME = ("~", "$HOME", "${HOME}", "${oc.env:HOME}")


def spell_out(located: LocatedTree, home: str) -> None:
    """Write every short form in `located` out, in place; each value keeps the place where it was written."""
    tree = located.tree
    for key, short in (("servers", "file"), ("models", "path"), ("engines", "binary")):
        _spell_entries(tree.get(key), short)
    for model in _mappings(tree.get("models")):
        _spell_entries(model.get("files"), "path")
    for server in _mappings(tree.get("servers")):
        if isinstance(server.get("draft"), str):
            server["draft"] = {"file": server["draft"]}
    if home:
        _at_home(tree, home)


def _mappings(entries: Any) -> list[dict[Any, Any]]:
    """The entries that are mappings."""
    return [entry for entry in entries.values() if isinstance(entry, dict)] if isinstance(entries, dict) else []


def _spell_entries(entries: Any, key: str) -> None:
    """Every entry that is a string is a mapping with it at `key`, in place."""
    for name, entry in list(entries.items()) if isinstance(entries, dict) else ():
        if isinstance(entry, str):
            entries[name] = {key: entry}


def _at_home(node: Any, home: str) -> None:
    """Replace the user's home at the beginning of every path below `node`, in place."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(value, str) and key in PATHS:
            node[key] = expand_home(value, home)
        elif isinstance(value, list) and key in PATHS:
            node[key] = [expand_home(item, home) if isinstance(item, str) else item for item in value]
        else:
            _at_home(value, home)


def expand_home(path: str, home: str) -> str:
    """`path` with the home that it begins with written out."""
    for word in _HOME:
        if path == word or path.startswith(f"{word}/"):
            return home + path[len(word) :]
    return path
