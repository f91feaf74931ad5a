"""Findings as text, the way compilers print them (CONTRACT "Finding")."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from launcher.cli.terminal import Terminal
from launcher.errors import Finding, Location

_STYLE = {"error": "red", "warning": "yellow", "note": "cyan"}
_RANK = {"error": 0, "warning": 1, "note": 2}


def show_findings(terminal: Terminal, findings: Iterable[Finding]) -> None:
    """Errors first, each with its place, notes and fixes."""
    for finding in sorted(findings, key=lambda f: _RANK[f.severity]):
        place = f"{printable(shown_place(finding.location))}: " if finding.location else ""
        head = terminal.style(f"{finding.severity}[{finding.code}]", _STYLE[finding.severity], "bold")
        terminal.line(f"{place}{head}: {printable(finding.message)}")
        for note in finding.notes:
            terminal.line(f"  = {printable(note)}")
        for fix in finding.fixes:
            effect = f" {printable(fix.effect)}" if fix.effect else ""
            terminal.line(f"  = fix: {terminal.style(printable(fix.override), 'green')}{effect}")


def printable(text: str) -> str:
    """`text` with control characters escaped: what a user wrote must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shown_place(location: Location) -> str:
    """`file:line:column`, the file as one would type it from here."""
    here = f"{Path.cwd()}/"
    return str(location).removeprefix(here)


def summary(findings: Iterable[Finding]) -> str:
    """`1 error, 2 warnings, 3 notes`."""
    counts = dict.fromkeys(_RANK, 0)
    for finding in findings:
        counts[finding.severity] += 1
    parts = [f"{n} {severity}{'s' if n != 1 else ''}" for severity, n in counts.items() if n]
    return ", ".join(parts) or "no findings"
