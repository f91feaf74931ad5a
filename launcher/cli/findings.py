"""Findings as text, the way compilers print them."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path

from launcher.cli.terminal import Terminal
from launcher.errors import Finding, HostError, Location

_STYLE = {"error": "red", "warning": "yellow", "note": "cyan"}
_RANK = {"error": 0, "warning": 1, "note": 2}


def show_findings(terminal: Terminal, findings: Iterable[Finding]) -> None:
    """Show findings, errors first, each with its location, notes and fixes."""
    for finding in sorted(findings, key=lambda f: _RANK[f.severity]):
        place = f"{printable(shown_place(finding.location))}: " if finding.location else ""
        plain = f"{finding.severity}[{finding.code}]"
        head = terminal.style(plain, _STYLE[finding.severity], "bold")
        for line in _folded(terminal, f"{place}{plain}: {printable(finding.message)}"):
            terminal.line(line.replace(plain, head, 1) if plain in line else line)
        for note in finding.notes:
            for line in _folded(terminal, f"  = {printable(note)}"):
                terminal.line(line)
        for fix in finding.fixes:
            effect = f" {printable(fix.effect)}" if fix.effect else ""
            terminal.line(f"  = fix: {terminal.style(printable(fix.override), 'green')}{effect}")


def show_problems(err: Terminal, problems: Collection[Finding]) -> int:
    """Show what could not be looked into, beside a command's answer. Returns the exit code."""
    show_findings(err, problems)
    return HostError.exit_code if problems else 0


def _folded(terminal: Terminal, text: str) -> list[str]:
    """`text` in lines of the terminal's width, broken between words; in a pipe as one line."""
    if not terminal.interactive or len(text) <= terminal.width:
        return [text]
    return textwrap.wrap(text, terminal.width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def printable(text: str) -> str:
    """`text` with control characters escaped: what a user wrote must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shown_place(location: Location) -> str:
    """`file:line:column`, with the file relative to the current directory."""
    here = f"{Path.cwd()}/"
    return str(location).removeprefix(here)


def counted(number: int, noun: str) -> str:
    """`1 server`, `2 servers`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def summary(findings: Iterable[Finding]) -> str:
    """`1 error, 2 warnings, 3 notes`."""
    counts = dict.fromkeys(_RANK, 0)
    for finding in findings:
        counts[finding.severity] += 1
    return ", ".join(counted(n, severity) for severity, n in counts.items() if n) or "no findings"
