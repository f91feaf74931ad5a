"""Every case says what its comments say, and every proposed override removes what it is proposed for."""

from __future__ import annotations

import shlex
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import Finding
from tests.cases.case import ROOT, Case, Expected, Words, find_cases, read_case
from tests.cases.conftest import Outcome, Workbench

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


BEYOND = {
    "config/usage": "the command line's own, tests/cli",
    "config/unknown-code": "`launch explain`, tests/cli",
    "catalog/missing-file": "a dangling link, tests/catalog; a path that is absent is planned from its declaration",
    "catalog/split-part-missing": "a case has one file a model, tests/catalog",
    "catalog/unknown-model": "the config stage refuses it first, tests/catalog",
    "catalog/unknown-quantization": "the config stage refuses it first, tests/catalog",
    "plan/slots-range": "slots=0 is refused by the config stage",
    "plan/context-twice": "the config stage refuses it first, tests/plan",
    "plan/context-range": "the config stage refuses it first, tests/plan",
    "plan/unknown-device": "the config stage refuses it first, tests/plan",
    "plan/dangling-reference": "the config and catalogue stages refuse it first, tests/plan",
    "engine/device-missing": "asks the binary on this host, tests/cli",
    "render/left-out": "deploy's, tests/render",
    "plan/proof-failed": "`launch plan --prove`, which starts the server; tests/engine",
    "plan/proof-mismatch": "`launch plan --prove`; tests/engine",
    "plan/proof-other-binary": "`launch plan --prove`; tests/engine",
    "plan/start-unknown": "the config stage refuses it first, tests/plan",
    "plan/start-cycle": "the config stage refuses it first, tests/plan",
    "render/unknown-device": "the config stage refuses it first, tests/render",
    "render/hook-left-out": "the config stage refuses it first, tests/render",
    "render/watchdog": "deploy's, tests/render",
}
"""Codes that no case can trigger through a whole compile, and where they are tested instead."""
STAGES = ("config/", "catalog/", "plan/", "cpu/", "engine/", "render/")


def test_every_code_has_cases_both_ways() -> None:
    """Each code of the compiler is expected by a case and missed narrowly by another."""
    pages = tomllib.loads((ROOT.parents[1] / "launcher" / "cli" / "explanations.toml").read_text(encoding="utf-8"))
    codes = {code for code in pages if code.startswith(STAGES)}
    cases = [read_case(path) for path in CASES]
    triggered = {e.code for case in cases for e in case.expected}
    missed = {code for case in cases for code in case.near_misses}
    assert codes - triggered - set(BEYOND) == set()
    assert triggered - codes == set()
    assert triggered - missed - NEVER_NARROW == set()
    assert len(cases) >= 150


NEVER_NARROW = {"config/yaml", "config/duplicate-key", "config/package-header", "config/defaults", "config/bad-name"}
"""Codes about files that cannot be read: every case that compiles is a near miss."""


def test_near_misses_are_misses() -> None:
    """A case does not expect what it says that it misses."""
    for path in CASES:
        case = read_case(path)
        assert not {e.code for e in case.expected} & set(case.near_misses), case.name
