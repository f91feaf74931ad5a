"""Every accident that must be caught is a code, or stands in docs/checks.md as not checked, with the reason."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from launcher.cli.explain import Unchecked, checks_page, explanations, unchecked
from tests.cases.case import ROOT, find_cases, read_case
from tests.cases.elsewhere import pairs
from tests.cases.test_logs import LOGS, expected_of


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accident; `unchecked` are rows of the table in docs/checks.md."""

    part: str
    text: str
    codes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


ROWS = msgspec.convert(tomllib.loads((ROOT / "rows.toml").read_text(encoding="utf-8"))["row"], tuple[Row, ...])
DESIGN = ROOT.parents[2] / "shared" / "design" / "CHECKS.md"
BESIDE = {"free GPU memory"}
"""Gaps of checks that nobody asked for."""


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.part}: {r.text[:40]}")
def test_a_row_is_a_code_or_is_said_to_be_none(row: Row) -> None:
    """Its codes have pages and triggers; what is not checked has its line and its reason in the page."""
    assert row.codes or row.unchecked
    assert set(row.codes) <= explained()
    assert set(row.codes) <= triggered()
    gaps, page = gaps_by_row(), shown_page()
    for text in row.unchecked:
        assert f"| {gaps[text].part} | {text} | {gaps[text].why} |" in page
        assert len(gaps[text].why) > 40


@functools.cache
def explained() -> set[str]:
    """Codes with a page."""
    return {page.code for page in explanations()}


@functools.cache
def gaps_by_row() -> dict[str, Unchecked]:
    """What is said to be unchecked."""
    return {gap.row: gap for gap in unchecked()}


@functools.cache
def shown_page() -> str:
    """docs/checks.md."""
    return checks_page()


@functools.cache
def triggered() -> set[str]:
    """Codes that a case, a log or a listed test triggers."""
    of_cases = {e.code for path in find_cases() for e in read_case(path).expected}
    return of_cases | {expected_of(path)[0] for path in LOGS} | pairs().keys()


def test_every_gap_is_of_a_row() -> None:
    """A line about something not checked goes when its row is caught."""
    assert {gap.row for gap in unchecked()} == {text for row in ROWS for text in row.unchecked} | BESIDE


def test_rows_are_those_of_the_design() -> None:
    """All of them, and in its words, where the design document is at hand (it is not part of the repository)."""
    assert len(ROWS) == len({row.text for row in ROWS}) == 50
    if DESIGN.is_file():
        assert sorted(row.text for row in ROWS) == sorted(rows_of(DESIGN))


def rows_of(path: Path) -> list[str]:
    """The rows of the design document: of its table, between its middle dots, or its sentences."""
    rows: list[str] = []
    for section in re.split(r"(?m)^## ", path.read_text(encoding="utf-8"))[1:]:
        body = section.partition("\n")[2]
        table = re.findall(r"(?m)^\| `[^|]*\| (.*) \|$", body)
        text = " ".join(body.split())
        dots = re.split(r" · |; (?=a draft)", text)
        rows += [row.rstrip(".") for row in table or (dots if len(dots) > 1 else re.split(r"(?<=\.) (?=[A-Z])", text))]
    return rows
