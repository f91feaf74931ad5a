"""Where values were written: findings get the location of their key. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.errors import Finding, Location
from launcher.ir.config import SourceMap

SHOWN_CHARACTERS = 500
"""How much of a message or a note is shown: users paste whole files into values."""


def locate(findings: Iterable[Finding], sources: SourceMap, default: Location | None = None) -> tuple[Finding, ...]:
    """The findings with `location` filled in from `key`.

    It is where the key was written, or its nearest written ancestor, or the first thing below it. Findings that have
    a location keep it; those whose key was written nowhere get `default`.
    """
    return tuple(
        f if f.location else msgspec.structs.replace(f, location=_find(f.key, sources, default)) for f in findings
    )


def shortened(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without the middle of texts longer than `SHOWN_CHARACTERS`, and without fixes that long."""
    return [
        msgspec.structs.replace(
            f,
            message=_short(f.message),
            notes=tuple(_short(note) for note in f.notes),
            fixes=tuple(fix for fix in f.fixes if len(fix.override) <= SHOWN_CHARACTERS),
        )
        for f in findings
    ]


def _short(text: str) -> str:
    """`text` with its beginning and its end: a huge value is in the middle of what is said about it."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 151]}…{text[-150:]}"


def _find(key: str, sources: SourceMap, default: Location | None) -> Location | None:
    """The location of `key`."""
    found = sources.find(key)
    if found is None and key:
        found = next((at for known, at in sources.locations.items() if known.startswith(f"{key}.")), None)
    return found or default
