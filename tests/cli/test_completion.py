"""Completion as shells ask for it: Typer's protocol from a process of its own, and a bash that someone types into."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.files import packaged_dir

LAUNCH = Path(sys.executable).with_name("launch")


def completed(kind: str, **env: str) -> list[str]:
    """What `launch` answers a shell of this kind."""
    env = {**os.environ, **env, "_LAUNCH_COMPLETE": f"complete_{kind}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([LAUNCH], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def bash(*words: str) -> list[str]:
    """What bash is answered while the last of `words` is being typed."""
    return completed("bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))


def fish(line: str) -> list[str]:
    """What fish is answered at the end of `line`."""
    return [answer.partition("\t")[0] for answer in completed("fish", _TYPER_COMPLETE_ARGS=line)]


HARDWARE = {"auto", *(file.stem for file in packaged_dir("conf").glob("hardware/*.yaml"))}


def test_the_first_word_may_be_a_command_or_an_override() -> None:
    """Both are offered, and few enough to be read: keys as far as their next dot."""
    answers = bash("launch", "")
    assert {"up", "plan", "hardware=", "profile=", "servers."} <= {*answers}
    assert len(answers) < 50
    assert {"plan", "hardware=", "servers."} <= {*fish("launch ")}


@pytest.mark.parametrize("before", [(), ("plan",), ("profile", "=", "dev")])
def test_every_word_completes_alike(before: tuple[str, ...]) -> None:
    """The first word, after a command, after another override: `=` ends the word for bash, and what follows is a value.

    A key is never the only candidate, behind which a shell would put a space.
    """
    assert {*bash("launch", *before, "hard")} == {f"hardware={name}" for name in HARDWARE}
    assert {*bash("launch", *before, "hardware", "=")} == HARDWARE
    assert bash("launch", *before, "hardware", "=", "e") == ["epyc"]
    line = " ".join(["launch", *(["profile=dev"] if "=" in before else before)])
    assert {*fish(f"{line} hard")} == {f"hardware={name}" for name in HARDWARE}
    assert fish(f"{line} hardware=e") == ["hardware=epyc"]


def type_into_bash(tmp_path: Path, keys: str) -> str:
    """The line that stands in an interactive bash once `keys` were typed into it."""
    script = subprocess.run(
        [LAUNCH], env={**os.environ, "_LAUNCH_COMPLETE": "source_bash"}, capture_output=True, text=True, check=True
    )
    start = tmp_path / "bashrc"
    start.write_text(f"PATH={LAUNCH.parent}:$PATH\nPS1='>'\nHISTFILE=\n{script.stdout}")
    result = tmp_path / "line"
    typed, terminal = pty.openpty()
    argv = ["bash", "--noprofile", "--rcfile", str(start), "-i"]
    env = {**os.environ, "INPUTRC": os.devnull}
    with subprocess.Popen(
        argv, env=env, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as shell:
        os.close(terminal)
        # then the line as it stands, in quotes, behind printf
        os.write(typed, f"{keys}\x05'>{result}; exit\x01printf %s '\r".encode())
        with contextlib.suppress(OSError):  # the terminal's end
            while os.read(typed, 4096):
                pass
        shell.wait(30)
    os.close(typed)
    return result.read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("launch hardw\t", "launch hardware="),
        ("launch hardware=ep\t", "launch hardware=epyc "),
        ("launch plan hardw\tep\t", "launch plan hardware=epyc "),
        ("launch pla\thardw\tep\t", "launch plan hardware=epyc "),
        ("launch servers.assist\tslots\t", "launch servers.assistant.slots="),
    ],
)
def test_what_a_tab_makes_of_the_line(tmp_path: Path, keys: str, line: str) -> None:
    """A whole word gets its space; one that ends in `=` or a dot goes on."""
    assert type_into_bash(tmp_path, keys) == line
