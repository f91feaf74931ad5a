"""What a translation makes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.author import free_name
from launcher.errors import Finding
from launcher.ir.dialect import Flag

Flags = Mapping[str, Flag]
"""Spelling → flag of a build: how many values each takes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def listed(value: Any) -> list[Any]:
    """The items of a list that a person wrote; of a single value that one; those without a value are none."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


class Imported(msgspec.Struct):
    """Servers in order, each as fields of the config; further top-level keys; what was lost on the way."""

    servers: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    findings: list[Finding] = []
    programs: list[str] = []
    """What the servers' command lines run, as it is written there; of those in containers nothing."""

    def lose(self, where: str, what: str, *notes: str) -> None:
        """Note that `what`, written at `where`, has no equal."""
        self.findings.append(
            Finding(code="author/left-out", severity="warning", key=where, message=f"{where}: {what}", notes=notes)
        )

    def add(self, name: str, fields: dict[str, Any]) -> None:
        """One server more; a name that a server cannot have becomes an alias of one that it can."""
        own = name if _NAME.fullmatch(name) else re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "server"
        own = free_name(own, self.servers)
        aliases = list(dict.fromkeys(map(str, fields.pop("aliases", []))))
        if own != name:
            aliases.insert(0, name)
        taken = {a for s in self.servers.values() for a in s.get("aliases", [])} | set(self.servers) | {own}
        good = [a for a in aliases if a.isprintable() and a.strip() and a not in taken]
        for alias in aliases:
            if alias not in good and alias != own:
                self.lose(name, f"the name {alias!r} is taken, or no name")
        self.servers[own] = fields | ({"aliases": good} if good else {})
