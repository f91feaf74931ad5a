"""Completion as shells ask for it: Typer's protocol from a process of its own, and shells that someone types into."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.files import packaged_dir
from tests.children import killed_on_failure

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
    assert len(answers) < 55  # CONTRACT's commands, with four for the pool, and the keys as far as their dot
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


STARTS = {
    "bash": (("--noprofile", "--rcfile", "{folder}/start", "-i"), "PS1='>'\nHISTFILE=\n{script}"),
    "zsh": (("-d", "-i"), "PS1='>'\nbindkey -e\nautoload -U compinit\ncompinit -u -D\n{script}"),
    # what fish proposes in grey is not taken over by the keys that follow
    "fish": (("--private", "-i", "-C", "source {folder}/start"), "set -g fish_autosuggestion_enabled 0\n{script}"),
}
"""How each shell is started, and what it reads then; zsh reads the `.zshrc` of ZDOTDIR."""


def type_into(shell: str, folder: Path, keys: str) -> str:
    """The line that stands in a shell of a terminal once `keys` were typed into it. `make test` installs the shells."""
    env = {**os.environ, "PATH": f"{LAUNCH.parent}:{os.environ['PATH']}", "INPUTRC": os.devnull, "TERM": "xterm"}
    env |= {"HOME": str(folder), "ZDOTDIR": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    env["XDG_DATA_HOME"] = str(folder / "data")
    # without it fish reads all manual pages in a process that outlives it
    (folder / "data/fish/generated_completions").mkdir(parents=True)
    script = subprocess.run(
        [LAUNCH], env={**env, "_LAUNCH_COMPLETE": f"source_{shell}"}, capture_output=True, text=True, check=True
    )
    options, start = STARTS[shell]
    (folder / (".zshrc" if shell == "zsh" else "start")).write_text(start.format(script=script.stdout))
    result = folder / "line"
    typed, terminal = pty.openpty()
    argv = ["setsid", "--ctty", shell, *(option.format(folder=folder) for option in options)]
    with killed_on_failure(
        subprocess.Popen(argv, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
    ) as running:
        os.close(terminal)
        # then the line as it stands, in quotes, behind printf
        os.write(typed, f"{keys}\x05'>{result}; exit\x01printf %s '\r".encode())
        with contextlib.suppress(OSError):  # the terminal's end
            while os.read(typed, 4096):
                pass
        running.wait(30)
    os.close(typed)
    return result.read_text()


@pytest.mark.parametrize("shell", STARTS)
def test_what_tabs_make_of_the_line(tmp_path: Path, shell: str) -> None:
    """A command, a key up to its `=`, which gets no space behind it, and values, which get one before what follows."""
    keys = "launch pla\thardw\tep\tservers.assistant.load_mode=di\tx"
    line = "launch plan hardware=epyc servers.assistant.load_mode=dio x"
    assert type_into(shell, tmp_path, keys) == line


def test_servers_of_a_fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one that is found, of the one that was typed; a file that cannot be read completes nothing."""
    (tmp_path / "launch.yaml").write_text("servers: {chat: a.gguf, look: b.gguf}\n")
    (tmp_path / "other.yaml").write_text("servers: {third: a.gguf}\n")
    (tmp_path / "bad.yaml").write_text("servers: [\n")
    monkeypatch.chdir(tmp_path)
    assert "servers.chat.slots=" in " ".join(fish("launch plan servers.chat.slo"))
    assert set(bash("launch", "remove", "")) >= {"chat", "look"}
    assert fish("launch remove -f other.yaml t") == ["third"]
    assert [word for word in fish("launch remove -f bad.yaml t") if word] == []
