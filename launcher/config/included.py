"""Servers that are added to the profile's (`include_warm`), and servers listed twice. Pure.

`include_warm=[a]` starts a WARM server with the HOT ones. Where the profile has `a` as a WARM server, the plan
promotes it; where it does not, `server/a` is added as if `+server=[a]` were typed. A server that starts at boot
anyway would be started twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from launcher.config.choices import Choices
from launcher.config.nearest import listing, nearest, set_to
from launcher.config.repository import FragmentRepository
from launcher.errors import Finding, Fix, fault

INCLUDE = "include_warm"
"""The key that lists the servers."""


class Included(msgspec.Struct, frozen=True):
    """Options of server/ to add, and what is wrong with the list."""

    added: tuple[str, ...]
    findings: tuple[Finding, ...]


def include(repository: FragmentRepository, tree: Mapping[str, Any], names: Sequence[str]) -> Included:
    """Decide for each of `names` whether it is in the composed `tree` already, is to be added, or is wrong."""
    servers = tree.get("servers")
    present = servers if isinstance(servers, dict) else {}
    options = repository.index.options("server")
    added: list[str] = []
    findings: list[Finding] = []
    for i, name in enumerate(names):
        key = f"{INCLUDE}.{i}"
        rest = [other for j, other in enumerate(names) if j != i]
        if name in present:
            if _starts_at_boot(tree, present[name]):
                findings.append(_twice(key, name, f"servers.{name}", rest))
        elif name not in options:
            findings.append(_unknown(key, name, names, {*options, *present}))
        elif name in added:
            findings.append(_twice(key, name, f"servers.{name}", rest))
        else:
            repository.load_config(f"server/{name}")
            package = repository.fragments[f"server/{name}"].package or ""
            if package.removeprefix("servers.") in present:
                findings.append(_twice(key, name, package, rest))
            else:
                added.append(name)
    return Included(tuple(added), tuple(findings))


def _starts_at_boot(tree: Mapping[str, Any], server: Any) -> bool:
    """Whether a server of the merged tree is in a tier that starts at boot."""
    tiers = tree.get("tiers")
    tier = tiers.get(server.get("tier")) if isinstance(tiers, dict) and isinstance(server, dict) else None
    return isinstance(tier, dict) and tier.get("start") == "boot"


def _twice(key: str, name: str, package: str, rest: list[str]) -> Finding:
    """The finding for a server that the fleet starts already."""
    return fault(
        "config/duplicate-server",
        key,
        f"{INCLUDE} names {name!r}, but the fleet starts {package} already: it would be started twice",
        f"drop it from {INCLUDE}",
        fixes=(set_to(INCLUDE, rest, f"{name} is started once"),),
    )


def _unknown(key: str, name: str, names: Sequence[str], known: set[str]) -> Finding:
    """The finding for a name that is neither in the fleet nor in server/."""
    near = nearest(name, known)
    fixes: tuple[Fix, ...] = ()
    if near is not None and near not in names:
        fixes = (set_to(INCLUDE, [near if n == name else n for n in names], "the nearest name"),)
    return fault(
        "config/unknown-option",
        key,
        f"{INCLUDE} names {name!r}, which is neither a server of this profile nor a file of server/",
        listing("servers", known),
        fixes=fixes,
    )


def listed_twice(repository: FragmentRepository, choices: Choices) -> list[Finding]:
    """Server files that the defaults list brings to one place more than once."""
    count = Counter(
        (default.config_path or "", default.package or "")
        for default in choices.defaults
        if (default.config_path or "").startswith("server/") and not default.is_self
    )
    return [
        fault(
            "config/duplicate-server",
            package,
            f"{path} is listed {times} times: {package} would be started twice",
            f"list it once; another server like it is `+server@servers.NAME={path.removeprefix('server/')}`",
            location=repository.mentions.get(path),
        )
        for (path, package), times in count.items()
        if times > 1 and path not in repository.phantoms
    ]
