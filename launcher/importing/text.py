"""The text of an imported fleet. Pure."""

from __future__ import annotations

from launcher.author import flow, modeline, scalar
from launcher.importing.result import Imported

_FIRST = ("file", "projector", "draft", "aliases", "tier", "ttl_s", "exclusive", "default")
"""Fields that a reader looks for first; the others follow in the order of their flags."""


def imported_text(imported: Imported, source: str, *, schema: str | None = None) -> str:
    """The fleet file, one line a field, with what was lost as comments at its end. `schema`: for editors."""
    lines = [modeline(schema)] if schema else []
    lines += [f"# Made by `launch import {source}`; yours to edit. `launch plan` shows what it takes."]
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
