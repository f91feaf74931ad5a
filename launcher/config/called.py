"""Servers that are called as model ids are (`org/model:q4_k_m`): what they are asked as, and what their unit is. Pure.

A server's name becomes a unit, files and an environment variable's part. So a name with `.`, `/` or `:` is kept as the
server's `id`, by which it is asked and listed, and the name is derived: `org-model-q4_k_m`.
"""

from __future__ import annotations

import re
from typing import Any

from launcher.base.names import derived_name
from launcher.config.located import LocatedTree

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+@-]{0,199}")
"""What a server may be called by."""


def name_servers(located: LocatedTree) -> None:
    """Give every server of `located` that is called by a model id its derived name, in place, where that is free.

    `after` and `ports` follow.
    """
    servers = located.tree.get("servers")
    if not isinstance(servers, dict):
        return
    renamed: dict[Any, str] = {}
    for name, server in servers.items():
        own = derived_name(name) if isinstance(name, str) and MODEL_ID.fullmatch(name) else name
        if own != name and own not in servers and own not in renamed.values() and isinstance(server, dict):
            renamed[name] = own
            server.setdefault("id", name)
            _move(located, f"servers.{name}", f"servers.{own}")
    if renamed:
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
    servers = located.tree.get("servers")
    for server in servers.values() if isinstance(servers, dict) else ():
        if isinstance(server, dict):
            called, aliases = server.get("id"), server.get("aliases") or []
            if isinstance(called, str) and isinstance(aliases, list) and called not in aliases:
                server["aliases"] = [called, *aliases]


def _move(located: LocatedTree, old: str, new: str) -> None:
    """Where the values of `old` were written is where those of `new` are."""
    below = f"{old}."
    for key in [key for key in located.locations if key == old or key.startswith(below)]:
        located.locations[new + key[len(old) :]] = located.locations.pop(key)
