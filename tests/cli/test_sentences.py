"""Every error path of a command is a sentence with a code of the contract: some cases of the fuzzer, and its finds."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from tests.cli.fuzz import CODES, COMMANDS, Arena, run_here

LAUNCH = str(Path(sys.executable).with_name("launch"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without anything."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(*words: str) -> object:
    """The exit code of `launch WORDS`."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_hand_made_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H21: spoilt bundles, records, state and trees; `python -m tests.cli.fuzz` tries thousands."""
    (home / "arena").mkdir()
    arena = Arena(home / "arena")
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(home / "arena/case/state"))
    for seed in range(6):
        rng = random.Random(seed)  # noqa: S311 - nothing secret
        with arena.case(rng) as place:
            for command in rng.sample([c for c in COMMANDS if not c.startswith("reload")], 2):
                words = command.format(bundle=place / "bundle", tree=place / "tree").split()
                code, said = run_here(words)
                assert code in CODES, (seed, command, said)
                assert "Traceback" not in said


def test_what_the_system_refuses_is_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """H21: `HOME=/dev/null`, and an error of the system that nobody nearer has a word for: host/refused."""
    env = {**os.environ, "HOME": "/dev/null", "LAUNCH_STATE_DIR": "/dev/null/x"}
    done = subprocess.run([LAUNCH, "status"], env=env, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode in CODES
    assert "Traceback" not in done.stderr
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("launcher.cli.app.run_app", lambda _: open("/dev/null/x"))  # noqa: PTH123, SIM115
        assert ended("status") == 6
    assert "error[host/refused]: the system refused: /dev/null/x: Not a directory" in capsys.readouterr().err


def test_what_is_no_text_is_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """H21: an undecodable state directory, or argument: config/not-text."""
    for words, name in ((["status"], "LAUNCH_STATE_DIR"), (["plan", "a=\udcff"], "TERM")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(name, "/tmp/\udcff")
            assert ended(*words) == 2
        assert "config/not-text" in capsys.readouterr().err


@pytest.mark.parametrize("count", [8, 16])
def test_few_descriptors_are_a_sentence(home: Path, count: int) -> None:
    """H21: `ulimit -n 16` is no traceback, and no word of something else."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    done = subprocess.run(
        [LAUNCH, "check", "profile=dev"],
        env={**os.environ, "LAUNCH_STATE_DIR": str(home / "state")},
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        preexec_fn=limit,
    )
    assert done.returncode in CODES
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert done.returncode == 0 or "Too many open files" in said


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\u202e"])
def test_config_prints_no_control_characters(home: Path, character: str) -> None:
    """H4: what a value does to a terminal is shown, not done."""
    code, said = run_here(["config", "profile=dev", f'profile.description="a{character}[2Jb"'])
    assert code == 0
    assert "profile.description" in said
    assert character not in said


def test_what_is_nested_too_deep_is_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON deeper than the stack, where nobody expected it: config/depth."""

    def deep(_: list[str]) -> int:
        raise RecursionError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("launcher.cli.app.run_app", deep)
        assert ended("status") == 2
    assert "config/depth" in capsys.readouterr().err


def test_a_good_command_says_nothing_of_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither host/refused, config/not-text nor config/depth."""
    assert (ended("status"), capsys.readouterr().err) == (0, "")


def test_a_bare_command_without_a_fleet_file_says_where_it_looked(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help alone would not say why nothing was started; to completion nothing is said."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert ended() == 0
    out, err = capsys.readouterr()
    assert err.startswith("no launch.yaml here or in ~/.config/launch: `launch init` writes one\n")
    assert "Usage:" in out
