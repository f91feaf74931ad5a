"""Engines that do not answer as they should: ended in time, heard in bounds, nothing of them left."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from launcher.engine.asking import NoAnswerError, ask


def script(folder: Path, does: str) -> tuple[str, ...]:
    """A program that does that."""
    path = folder / "engine"
    path.write_text(f"#!/bin/bash\n{does}\n")
    path.chmod(0o755)
    return (str(path),)


def test_both_streams_and_the_status(tmp_path: Path) -> None:
    """As they were written; what is no UTF-8 does not matter."""
    assert ask(script(tmp_path, "printf 'a\\xff'; echo b >&2; exit 3"), {}, timeout_s=60) == (3, "a\ufffd", "b\n")
    assert ask(script(tmp_path, "kill -ILL $$"), {}, timeout_s=60).status == -4


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exec yes", "wrote more than 8 MiB"),
        ("exec cat /dev/zero >&2", "wrote more than 8 MiB"),
        ("sleep 4322", "did not answer in 1 s"),
        ("exec >&- 2>&-; sleep 4322", "did not answer in 1 s"),
    ],
    ids=["lines", "zeros", "hangs", "hangs-unheard"],
)
def test_what_does_not_end_is_ended(does: str, said: str, tmp_path: Path) -> None:
    """In bounded time and memory, with all that it started."""
    with pytest.raises(NoAnswerError, match=re.escape(said)):
        ask(script(tmp_path, does), {}, timeout_s=60 if "wrote" in said else 1)
    assert left("4322") == []


def test_a_child_that_is_left_behind_is_ended(tmp_path: Path) -> None:
    """The engine has answered, and what it started goes with it."""
    assert ask(script(tmp_path, "sleep 4323 >/dev/null 2>&1 & echo 1"), {}, timeout_s=60).out == "1\n"
    assert left("4323") == []


def left(word: str) -> list[int]:
    """Processes with that word, but for those that are ending."""
    found = [p for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]
    _, alive = psutil.wait_procs(found, timeout=30)
    return [p.pid for p in alive]
