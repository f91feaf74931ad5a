"""Engines that do not answer as they should: ended in time, heard in bounds, nothing of them left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from launcher.base.processes import MARK, ProcessScope, ScopeEndedError, kill_left_behind, read_pipes
from launcher.engine.asking import NoAnswerError, ask
from launcher.engine.prove import DryRunError, dry_run
from tests.children import killed_on_failure


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


@pytest.mark.parametrize(
    "how",
    [
        "sleep 4327 &",
        "setsid sleep 4327 &",
        "(setsid setsid sleep 4327 &) &",
        "set -m; sleep 4327 &",
        "timeout 999 sleep 4327 &",
    ],
    ids=["group", "session", "twice", "job", "timeout"],
)
def test_whatever_it_starts_is_ended_and_holds_nobody_up(how: str, tmp_path: Path) -> None:
    """In another group, in another session, holding the pipes: it is known by its mark."""
    assert ask(script(tmp_path, f"{how}\necho 1"), {}, timeout_s=60).out == "1\n"
    assert left("4327") == []


def test_what_a_killed_command_left_is_ended_by_the_next(tmp_path: Path) -> None:
    """Kill -9 of who asked: the script dies with it, what the script started has the mark of one that is gone."""
    words = script(tmp_path, "sleep 4328 & wait")
    asking = "import sys; from launcher.engine.asking import ask; ask(sys.argv[1:], {}, timeout_s=600)"
    with subprocess.Popen([sys.executable, "-c", asking, *words]) as command:
        try:
            until = time.monotonic() + 60
            while not running("4328") and time.monotonic() < until:
                time.sleep(0.02)
            kill_left_behind()
            assert running("4328")
        finally:
            command.kill()
    kill_left_behind()
    assert left("4328") == []


def test_nobody_of_another_namespace_is_ended() -> None:
    """A container's command has a pid that means nobody here, or somebody else: what it asks is let alone."""
    with killed_on_failure(subprocess.Popen(["sleep", "4329"], env={**os.environ, MARK: "pid:[1].1.1/0"})) as theirs:
        kill_left_behind()
        assert theirs.poll() is None
        theirs.kill()


def test_a_child_that_is_left_behind_is_ended(tmp_path: Path) -> None:
    """The engine has answered, and what it started goes with it."""
    assert ask(script(tmp_path, "sleep 4323 >/dev/null 2>&1 & echo 1"), {}, timeout_s=60).out == "1\n"
    assert left("4323") == []


def test_a_question_without_an_answer_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command asks in several places; a hanging engine costs it one limit. Another program in its place is asked."""
    words = script(tmp_path, f"echo x >> {tmp_path}/calls; sleep 4324")
    for _ in range(3):
        with pytest.raises(NoAnswerError, match=r"in 0\.5 s"):
            ask(words, {}, timeout_s=0.5)
    assert (tmp_path / "calls").read_text() == "x\n"
    (tmp_path / "engine").unlink()
    assert ask(script(tmp_path, "echo 1"), {}, timeout_s=60).out == "1\n"
    script(tmp_path, "sleep 4324")
    monkeypatch.setattr("launcher.engine.asking.RETRY_AFTER_S", 0.0)
    with pytest.raises(NoAnswerError):
        ask(words, {}, timeout_s=0.5)


def test_nothing_runs_after_its_scope() -> None:
    """A thread that waits for a program goes on when the scope ends; one that comes later starts nothing."""
    said: list[bytes] = []
    started = threading.Event()

    def wait(scope: ProcessScope) -> None:
        with scope.start(("sleep", "4325"), os.environ, stdout=subprocess.PIPE) as child:
            started.set()
            said.extend(data for _, data in read_pipes(child, time.monotonic() + 60))
            said.append(b"over")

    with ProcessScope() as scope:
        thread = threading.Thread(target=wait, args=(scope,))
        thread.start()
        assert started.wait(60)
    thread.join(60)
    assert said == [b"over"]
    with pytest.raises(ScopeEndedError), scope.start(("sleep", "4325"), os.environ):
        pass
    assert left("4325") == []


def running(word: str) -> list[psutil.Process]:
    """Processes with that word; a child that has not become its program yet has its parent's words."""
    return [p for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]


def left(word: str) -> list[int]:
    """Processes with that word, but for those that are ending."""
    _, alive = psutil.wait_procs(running(word), timeout=30)
    return [p.pid for p in alive]


def test_what_no_program_can_be_given() -> None:
    """A NUL in a word or a variable: it cannot be run, whoever asks."""
    for words, env in ((["/bin/true", "a\0b"], {}), (["/bin/true"], {"A": "a\0b"})):
        with pytest.raises(OSError, match="null byte"):
            ask(words, env, timeout_s=5)
        with pytest.raises(DryRunError, match="null byte") as caught:
            dry_run(words, {}, model="m", env=env)
        assert caught.value.cause == "refused"
