"""What the ends of logs mean: one file a cause, each a near miss of all the others.

The grammar, before the log itself: `#: …` says what happened, `#: exit: CODE` (negative: a signal), `#: oom-killed`
where the kernel counted a kill meanwhile, `#: loading` where it was a llama-server that was not ready, and
`#: CODE says TEXT`, the diagnosis and words of its cause.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.supervise.diagnosis import diagnose
from tests.cases.case import ROOT

LOGS = sorted((ROOT / "logs").glob("*.log"))
_EXPECTED = re.compile(r"#: (supervise/\S+) says (.+)")


def expected_of(path: Path) -> tuple[str, str]:
    """The code that a log case expects, and words of the cause."""
    match = _EXPECTED.search(path.read_text(encoding="utf-8"))
    assert match, path
    return match[1], match[2]


@pytest.mark.parametrize("path", LOGS, ids=lambda p: p.stem)
def test_log(path: Path) -> None:
    """The cause is named in words, with a remedy."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = [line for line in lines if line.startswith("#: ")]
    code = next(int(line.removeprefix("#: exit: ")) for line in said if line.startswith("#: exit: "))
    tail = tuple(line for line in lines if line not in said)
    found = diagnose(code, tail, oom_killed="#: oom-killed" in said, loading="#: loading" in said)
    wanted, words = expected_of(path)
    assert found.code == wanted
    assert words in found.cause
    assert found.remedy
