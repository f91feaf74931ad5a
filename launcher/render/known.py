"""What is asked of a dialect for every server, worked out once. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launcher.ir.dialect import Dialect, Flag
from launcher.render.spellings import TABLE, Meaning

KEPT = 16
"""Dialects whose answers are kept."""


class Known(NamedTuple):
    """Spelling → flag; first spelling of each flag that the plan depends on → its meaning; environment name → flag."""

    flags: Mapping[str, Flag]
    owners: Mapping[str, Meaning]
    by_variable: Mapping[str, Flag]


_kept: dict[int, tuple[Dialect, Known]] = {}


def known(dialect: Dialect) -> Known:
    """The answers for `dialect`, by identity: its flags are many, and to compare them costs more than to list them."""
    found = _kept.get(id(dialect))
    if found is None or found[0] is not dialect:
        if len(_kept) >= KEPT:
            _kept.clear()
        index = dialect.index()
        found = dialect, Known(index, owners(index), {flag.env: flag for flag in index.values() if flag.env})
        _kept[id(dialect)] = found
    return found[1]


def owners(index: Mapping[str, Flag]) -> dict[str, Meaning]:
    """First spelling of each flag that the plan depends on → its meaning. A removed flag belongs to nobody."""
    return {
        index[name].names[0]: meaning
        for meaning in TABLE
        if not meaning.soft
        for name in meaning.owns
        if name in index and not index[name].removed
    }
