"""Every situation that was once wrong is re-enacted, with at least two neighbours."""

from __future__ import annotations

import re
import tomllib

import msgspec
import pytest

from tests.cases.case import ROOT


class Situation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it was, and the cases and tests that show it."""

    what: str
    shown_by: tuple[str, ...]


SITUATIONS = msgspec.convert(
    tomllib.loads((ROOT / "situations.toml").read_text(encoding="utf-8")), dict[str, Situation]
)


@pytest.mark.parametrize("name", [f"F{number}" for number in range(1, 26)])
def test_a_situation_is_shown(name: str) -> None:
    """Itself and two more of its kind, in cases and tests that exist."""
    shown = SITUATIONS[name].shown_by
    assert len(set(shown)) >= 3
    for entry in shown:
        file, _, test = entry.partition("::")
        if not test:
            assert (ROOT / f"{file}.yaml").is_file(), entry
            continue
        text = (ROOT.parents[1] / file).read_text(encoding="utf-8")
        assert re.search(r"def test_" if test == "*" else rf"def {test}\(", text), entry
