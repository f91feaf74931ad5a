"""Short forms of the config and the whole value that each stands for. Pure.

`chat: ~/models/x.gguf` is a server, `qwen: x.gguf` a model, `q8_0: x.gguf` a file of one; `~` and `$HOME` at the
beginning of a path are the user's home.

A server's name becomes a unit, files and an environment variable's part. So one that is called as model ids are
(`org/model:q4_k_m`) is kept as the server's `id`, by which it is asked and listed, and the name is derived:
`org-model-q4_k_m`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.base.names import derived_name
from launcher.config.located import LocatedTree, mapping_at

PATHS = frozenset(
    {
        *("path", "file", "projector", "model_dir", "binary", "library_path", "state_dir", "slot_save_path"),
        *("output_dir", "chat_template_file"),
    }
)
"""Keys whose values are paths. Not the front's files: who starts it has another home, so `~` is refused there."""

_HOME = ("~", "$HOME", "${HOME}", "${oc.env:HOME}")

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+@-]{0,199}")
"""What a server may be called by."""


def spell_out(located: LocatedTree, home: str) -> None:
    """Write every short form in `located` out, in place; each value keeps the place where it was written."""
    tree = located.tree
    for key, short in (("servers", "file"), ("models", "path"), ("engines", "binary")):
        _spell_entries(mapping_at(tree, key), short)
    for model in mapping_at(tree, "models").values():
        _spell_entries(mapping_at(model, "files"), "path")
    for server in mapping_at(tree, "servers").values():
        if isinstance(server, dict) and isinstance(server.get("draft"), str):
            server["draft"] = {"file": server["draft"]}
    if home:
        _at_home(tree, home)
    _name_servers(located)


def _spell_entries(entries: dict[Any, Any], key: str) -> None:
    """Every entry that is a string is a mapping with it at `key`, in place."""
    for name, entry in list(entries.items()):
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


def _name_servers(located: LocatedTree) -> None:
    """Give every server of `located` that is called by a model id its derived name, in place, where that is free.

    `after` and `ports` follow.
    """
    servers = located.tree.get("servers")
    if not isinstance(servers, dict):
        return
    renamed: dict[Any, str] = {}
    taken = set(servers)
    for name, server in servers.items():
        own = derived_name(name) if isinstance(name, str) and MODEL_ID.fullmatch(name) else name
        if own != name and own not in taken and isinstance(server, dict):
            renamed[name] = own
            taken.add(own)
            server.setdefault("id", name)
    if renamed:
        located.locations = {_moved(key, renamed): place for key, place in located.locations.items()}
        located.tree["servers"] = {renamed.get(name, name): server for name, server in servers.items()}
        ports = located.tree.get("ports")
        if isinstance(ports, dict):
            located.tree["ports"] = {renamed.get(name, name): port for name, port in ports.items()}
        for server in located.tree["servers"].values():
            after = server.get("after") if isinstance(server, dict) else None
            if isinstance(after, list):
                server["after"] = [renamed.get(n, n) if isinstance(n, str) else n for n in after]


def know_by_id(located: LocatedTree) -> None:
    """Have every server's `id` among its aliases, in place: whoever names it means that server."""
    for server in mapping_at(located.tree, "servers").values():
        if isinstance(server, dict):
            called, aliases = server.get("id"), server.get("aliases") or []
            if isinstance(called, str) and isinstance(aliases, list) and called not in aliases:
                server["aliases"] = [called, *aliases]


def _moved(key: str, renamed: Mapping[Any, str]) -> str:
    """The dotted `key` of a server's value, under its new name; the old one may have dots as well."""
    top, *parts = key.split(".")
    for end in range(len(parts) if top == "servers" else 0, 0, -1):
        name = renamed.get(".".join(parts[:end]))
        if name is not None:
            return ".".join((top, name, *parts[end:]))
    return key
