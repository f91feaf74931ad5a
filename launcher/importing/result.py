"""The result of a translation, and its text as a fleet file. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.author import flow, free_name, modeline, scalar
from launcher.errors import Finding, fault
from launcher.ir.dialect import Flag

Flags = Mapping[str, Flag]
"""Spelling → flag of a build, which says how many values it takes."""

_FIRST = ("file", "projector", "draft", "aliases", "tier", "ttl_s", "exclusive", "default")
"""Fields that a reader looks for first, and which are written first; the others follow in the order of their flags."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def listed(value: Any) -> list[Any]:
    """`value` as a list: a single value becomes one item; items without a value (None) are dropped."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


class Imported(msgspec.Struct):
    """Servers in order, each as fields of the config; further top-level keys (`rest`); findings for what was lost."""

    servers: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    findings: list[Finding] = []
    programs: list[str] = []
    """Programs that the servers' command lines run, as written there; none for servers in containers."""

    def add_loss(self, where: str, what: str, *notes: str) -> None:
        """Add the finding that `what`, written at `where`, has no equivalent here."""
        self.findings.append(fault("author/left-out", where, f"{where}: {what}", *notes, severity="warning"))

    def add(self, name: str, fields: dict[str, Any]) -> None:
        """Add a server; a name that a server cannot have becomes an alias of one that it can have."""
        for field, value in list(fields.items()):
            try:
                flow(value)
            except (TypeError, ValueError):
                self.add_loss(
                    name, f"`{field}` has a value that is neither text, number nor truth: {fields.pop(field)}"
                )
        own = name if _NAME.fullmatch(name) else re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "server"
        own = free_name(own, self.servers)
        aliases = list(dict.fromkeys(map(str, fields.pop("aliases", []))))
        if own != name:
            aliases.insert(0, name)
        taken = {a for s in self.servers.values() for a in s.get("aliases", [])} | set(self.servers) | {own}
        good = [a for a in aliases if a.isprintable() and a.strip() and a not in taken]
        for alias in aliases:
            if alias not in good and alias != own:
                self.add_loss(name, f"the name {alias!r} is taken, or no name")
        self.servers[own] = fields | ({"aliases": good} if good else {})


def imported_text(imported: Imported, source: str, *, schema: str | None = None) -> str:
    """The fleet file, one field per line, with what was lost as comments at its end. `schema`: for editors."""
    lines = [modeline(schema)] if schema else []
    lines += [f"# Made by `launch import {_one_line(source)}`; yours to edit. `launch plan` shows what it takes."]
    for key, value in imported.rest.items():
        lines.append(f"{key}: {flow(value)}")
    lines.append("servers:" if imported.servers else "servers: {}")
    for name, fields in imported.servers.items():
        if set(fields) == {"file"}:
            lines.append(f"  {scalar(name)}: {scalar(fields['file'])}")
            continue
        lines.append(f"  {scalar(name)}:")
        ordered = [*(f for f in _FIRST if f in fields), *(f for f in fields if f not in _FIRST)]
        lines += [f"    {field}: {flow(fields[field])}" for field in ordered]
    if imported.findings:
        lines.append("# Without an equal here:")
        lines += [f"#   {_one_line(finding.message)}" for finding in imported.findings]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
