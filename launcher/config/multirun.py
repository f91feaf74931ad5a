"""Hydra's multirun: overrides with several values, as its basic sweeper takes them apart. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def combinations(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every combination, the last override's values changing first.

    What has no values to go through (an interval, a `glob()`, no override at all) stays: who compiles it says so.
    """
    parser = OverridesParser.create()
    return tuple(product(*(_values(parser, text) for text in overrides)))


def _values(parser: OverridesParser, text: str) -> list[str]:
    """One override for each of its values."""
    try:
        override = parser.parse_rule(text, "override")
        if not override.is_sweep_override() or not override.is_discrete_sweep():
            return [text]
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except (HydraException, ValueError, TypeError, AssertionError, ArithmeticError, RecursionError):
        return [text]
