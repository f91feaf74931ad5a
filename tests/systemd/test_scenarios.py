"""One list of scenarios under both owners of processes, in a booted systemd; docs/deploy.md says where they differ."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.systemd.conftest import Fleet
from tests.systemd.scenarios import SCENARIOS, Children, Run, Units, describe

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(300)]

DOCS = Path(__file__).parents[2] / "docs/deploy.md"


def outcomes(run: Run) -> dict[str, str]:
    """Every scenario, in order."""
    return {name: getattr(run, name)() for name in SCENARIOS}


def test_the_same_under_both_owners(fleet: Fleet) -> None:
    """Line by line the same, but for the rows of the table that say otherwise; the table has every scenario."""
    describe(fleet)
    children = outcomes(Children(fleet))
    fleet.config["servers"]["beta"]["slots"] = 1
    units = outcomes(Units(fleet))
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|", DOCS.read_text(), re.MULTILINE))
    assert list(rows) == list(SCENARIOS)
    differing = [name for name in SCENARIOS if children[name] != units[name]]
    shown = "\n".join(f"{name}:\n  {children[name]}\n  {units[name]}" for name in SCENARIOS)
    assert differing == [name for name, verdict in rows.items() if verdict == "differs"], shown
