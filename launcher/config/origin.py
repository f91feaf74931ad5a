"""Where values were written: findings get the location of their key. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.errors import Finding, Location
from launcher.ir.config import SourceMap


def locate(findings: Iterable[Finding], sources: SourceMap, default: Location | None = None) -> tuple[Finding, ...]:
    """The findings with `location` filled in from `key`.

    It is where the key was written, or its nearest written ancestor, or the first thing below it. Findings that have
    a location keep it; those whose key was written nowhere get `default`.
    """
    return tuple(
        f if f.location else msgspec.structs.replace(f, location=_find(f.key, sources, default)) for f in findings
    )


def _find(key: str, sources: SourceMap, default: Location | None) -> Location | None:
    """The location of `key`."""
    found = sources.find(key)
    if found is None and key:
        found = next((at for known, at in sources.locations.items() if known.startswith(f"{key}.")), None)
    return found or default
