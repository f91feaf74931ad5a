"""Every case says what its comments say, and every proposed override removes what it is proposed for."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli.explain import explanations
from launcher.errors import Finding
from tests.cases.case import ROOT, Case, Expected, Words, find_cases, read_case
from tests.cases.conftest import Outcome, Workbench
from tests.cases.elsewhere import is_written, pairs, source_of
from tests.cases.test_logs import LOGS, expected_of

CASES = find_cases()


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.relative_to(ROOT).with_suffix("").as_posix())
def test_case(path: Path, workbench: Callable[[Case], Workbench]) -> None:
    """The findings are those of the comments, the command lines have the words, the fixes work."""
    case = read_case(path)
    bench = workbench(case)
    outcome = bench.run()
    shown = "\n".join(_show(bench, f) for f in outcome.findings)
    wanted = Counter((e.severity, e.code) for e in case.expected)
    assert Counter((f.severity, f.code) for f in outcome.findings) == wanted, shown
    for expected in case.expected:
        assert any(_is(bench, expected, f) for f in outcome.findings), f"{expected}\n{shown}"
    assert all(f.location for f in outcome.findings), shown
    for words in case.argv:
        assert _argv_agrees(outcome, words), (words, outcome.commands[words.server].argv)
    assert set(case.renders) <= set(outcome.files)
    for finding in outcome.findings:
        _fixes_work(bench, finding)


def _is(bench: Workbench, expected: Expected, finding: Finding) -> bool:
    """Whether a finding is the expected one."""
    place = bench.place(finding)
    text = "\n".join((finding.message, *finding.notes, *(f"{f.override} {f.effect}" for f in finding.fixes)))
    return (
        (finding.severity, finding.code) == (expected.severity, expected.code)
        and (expected.key is None or finding.key == expected.key)
        and (expected.place is None or place == expected.place)
        and expected.says in text
    )


def _argv_agrees(outcome: Outcome, words: Words) -> bool:
    """Whether the words stand in the command line one after the other, or none of them does."""
    argv = outcome.commands[words.server].argv
    if not words.there:
        return not set(words.words) & set(argv)
    size = len(words.words)
    return any(argv[i : i + size] == words.words for i in range(len(argv) - size + 1))


def _fixes_work(bench: Workbench, finding: Finding) -> None:
    """Each proposed override removes the finding; one that only saves memory need not, unless it says `enough`."""
    for fix in finding.fixes:
        if fix.effect.startswith("saves ") and not fix.effect.endswith("enough"):
            continue
        after = bench.run(*shlex.split(fix.override, posix=False), instead_of=finding.location)
        left = [f for f in after.findings if (f.code, f.key) == (finding.code, finding.key)]
        assert not left, f"{fix.override} leaves\n" + "\n".join(_show(bench, f) for f in left)


def _show(bench: Workbench, finding: Finding) -> str:
    """A finding as a case would expect it."""
    notes = "".join(f"\n    = {n}" for n in (*finding.notes, *(f"fix: {f.override}" for f in finding.fixes)))
    return f"{finding.severity} {finding.code} {finding.key} at {bench.place(finding)} says {finding.message}{notes}"


def test_every_code_has_a_trigger_and_a_near_miss() -> None:
    """Each page of `launch explain` is of a code that a case, a log or a listed test triggers, and another misses."""
    codes = {page.code for page in explanations()}
    cases = [read_case(path) for path in CASES]
    triggered = {e.code for case in cases for e in case.expected}
    missed = {code for case in cases for code in case.near_misses}
    of_logs = {expected_of(path)[0] for path in LOGS}
    lacking = sorted(codes - triggered - of_logs - pairs().keys())
    assert lacking == [], "add a case (CONTRIBUTING.md says how), or name two tests in tests/cases/elsewhere.toml"
    assert sorted((triggered | missed | of_logs | pairs().keys()) - codes) == []
    assert sorted(triggered - missed - NEVER_NARROW - pairs().keys()) == []
    assert sorted(pairs().keys() & of_logs) == []
    assert len(of_logs) > 10
    assert len(cases) >= 150


@pytest.mark.parametrize("code", pairs())
def test_listed_tests_are_there(code: str) -> None:
    """Both exist, and one with parameters has the code among them; what they speak is seen by `speaks_as_listed`."""
    pair = pairs()[code]
    assert pair.triggers != pair.spares
    for test in pair:
        assert source_of(test) is not None, f"there is no test {test}"
    assert "[" not in pair.triggers or "[asgi]" in pair.triggers or is_written(code, pair.triggers)


NEVER_NARROW = {"config/yaml", "config/duplicate-key", "config/package-header", "config/defaults", "config/bad-name"}
"""Codes about files that cannot be read: every case that compiles is a near miss."""


def test_near_misses_are_misses() -> None:
    """A case does not expect what it says that it misses."""
    for path in CASES:
        case = read_case(path)
        assert not {e.code for e in case.expected} & set(case.near_misses), case.name
