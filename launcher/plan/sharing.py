"""Files that several servers map: their pages count once. Pure."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from launcher.ir.plan import ServerPlan
from launcher.plan.memory import Part, add_up

NEVER = 2


def share(servers: tuple[ServerPlan, ...]) -> tuple[ServerPlan, ...]:
    """`servers` with the pages of each mapped file left to one of them, and `shared_with` filled in.

    That one is the first by name among those that are always up together: servers of exclusive groups own nothing
    (they may be down), and a server started on demand does not carry the pages of one started at boot.
    """
    users: defaultdict[str, list[ServerPlan]] = defaultdict(list)
    for server in servers:
        for source in {part.source for part in server.parts if part.file}:
            users[source].append(server)
    partners: defaultdict[str, set[str]] = defaultdict(set)
    owned: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for source, mapping in users.items():
        owner = min((s for s in mapping if _rank(s) < NEVER), key=lambda s: (_rank(s), s.name), default=None)
        if owner is None:
            continue
        pages = sum(part.file for part in owner.parts if part.source == source)
        together = [s for s in mapping if s is not owner and (_rank(owner) == 0 or _rank(s) == _rank(owner))]
        for server in together:
            owned[server.name][source] = pages
        for server in (owner, *together) if together else ():
            partners[server.name] |= {s.name for s in (owner, *together) if s is not server}
    return tuple(_without(s, owned[s.name], partners[s.name]) if s.name in partners else s for s in servers)


def _rank(server: ServerPlan) -> int:
    """0: up from start to stop; 1: up on demand; 2: may be down while others need the pages."""
    if server.config.exclusive or server.starts == "never":
        return NEVER
    return 0 if server.starts == "boot" else 1


def _without(server: ServerPlan, owned: dict[str, int], partners: set[str]) -> ServerPlan:
    """`server` without the pages that another one is counted for."""
    parts = tuple(_less(p, owned[p.source]) if p.file and p.source in owned else p for p in server.parts)
    memory = add_up(parts, shared={"ram": tuple(sorted(partners))})
    return msgspec.structs.replace(server, memory=memory)


def _less(part: Part, pages: int) -> Part:
    """`part` without the `pages` bytes of its file that are counted elsewhere, locked or not."""
    counted = min(part.file, pages)
    return msgspec.structs.replace(part, file=part.file - counted, locked=max(0, part.locked - counted))
