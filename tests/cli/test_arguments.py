"""The command line before Typer: the default command, global options, completion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import __version__
from launcher.cli.app import _process_names, command_names, run_app
from launcher.cli.arguments import complete_override, is_override, later_wins, with_command
from launcher.cli.complete import words_before

OPTIONS = {"hardware": ["auto", "epyc", "sovereign"], "profile": ["dev", "full"], "servers.a.tier": ["hot"]}
KEYS = {"include_warm": "[]", "servers.a.slots": "null"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["hardware=epyc", "profile=hot_only"], ["up", "hardware=epyc", "profile=hot_only"]),
        (["--detach", "hardware=dev"], ["up", "--detach", "hardware=dev"]),
        (["--config-dir", "mine", "a=1"], ["up", "--config-dir", "mine", "a=1"]),
        (["--json", "plan", "a=1"], ["plan", "--json", "a=1"]),
        (["--config-dir=mine", "plan"], ["plan", "--config-dir=mine"]),
        (["~servers.worker_vision"], ["up", "~servers.worker_vision"]),
        (["+server=mine"], ["up", "+server=mine"]),
        (["++a.b=1"], ["up", "++a.b=1"]),
        (["plan", "a=1"], ["plan", "a=1"]),
        (["profile=dev", "plan", "--json"], ["plan", "profile=dev", "--json"]),
        (["--help"], ["--help"]),
        (["nonsense"], ["nonsense"]),
        ([], []),
    ],
)
def test_first_override_means_up(argv: list[str], words: list[str]) -> None:
    """An override as the first word is `up`; global options move behind the command."""
    assert with_command(argv, command_names()) == words


@given(st.lists(st.text(max_size=20), max_size=6))
def test_no_word_is_lost(argv: list[str]) -> None:
    """Whatever is typed, every word reaches Typer; at most `up` is added."""
    words = with_command(argv, command_names())
    assert sorted(words) in (sorted(argv), sorted([*argv, "up"]))


def test_a_path_is_not_an_override() -> None:
    """Words without `=` and without a sign are commands or their arguments."""
    assert not is_override("model.gguf")
    assert not is_override("-x=1")
    assert is_override("servers.a.env.X=a b\nc")


@pytest.mark.parametrize(
    ("args", "incomplete", "expected"),
    [
        (["plan"], "hardware=", ["hardware=auto", "hardware=epyc", "hardware=sovereign"]),
        (["plan"], "hardware=e", ["hardware=epyc"]),
        (["plan", "hardware"], "=", ["auto", "epyc", "sovereign"]),
        (["plan", "hardware", "="], "so", ["sovereign"]),
        (["plan"], "", ["hardware=", "include_warm=", "profile=", "servers."]),
        (["plan"], "pro", ["profile=dev", "profile=full"]),
        (["plan"], "+pro", ["+profile=dev", "+profile=full"]),
        (["plan"], "include", ["include_warm=", "include_warm=[]"]),
        (["plan"], "serv", ["servers.a.slots=", "servers.a.tier="]),
        (["plan"], "servers.a.t", ["servers.a.tier=", "servers.a.tier=hot"]),
        (["plan"], "nothing=", []),
    ],
)
def test_overrides_complete(args: list[str], incomplete: str, expected: list[str]) -> None:
    """Keys dot by dot, and values; a lone `key=` comes with its values; bash's split at `=` is understood."""
    assert complete_override(args, incomplete, OPTIONS, KEYS) == expected


@pytest.mark.parametrize(
    ("env", "incomplete", "expected"),
    [
        ({"COMP_WORDS": "launch\nplan\nhardware\n=", "COMP_CWORD": "3"}, "", (["plan", "hardware"], "=")),
        ({"COMP_WORDS": "launch\nplan\nhardware\n=\nep", "COMP_CWORD": "4"}, "ep", (["plan", "hardware", "="], "ep")),
        ({"_TYPER_COMPLETE_ARGS": "launch plan hardware=e"}, "hardware=e", (["plan"], "hardware=e")),
        ({"_TYPER_COMPLETE_ARGS": "launch plan "}, "", (["plan"], "")),
    ],
)
def test_shells_say_what_was_typed(env: dict[str, str], incomplete: str, expected: tuple[list[str], str]) -> None:
    """Bash by words that it broke at `=`, zsh and fish by the line."""
    assert words_before(env, incomplete) == expected


def test_a_later_override_takes_the_place_of_an_earlier_one() -> None:
    """Hydra refuses one group twice; `reload` means the last word."""
    assert later_wins(("hardware=dev", "a.b=1", "+c=2"), ("hardware=auto", "++a.b=3")) == (
        "+c=2",
        "hardware=auto",
        "++a.b=3",
    )


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for by itself."""
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"launch {__version__}\n"


def test_a_process_is_named_by_its_model_id_too() -> None:
    """What its unit is called is derived; a plain name stays as it is, and nothing leads out of a directory."""
    typed = ["org/model:q4_k_m", "qwen2.5", "plain_one", "../../etc/passwd"]
    assert _process_names(typed) == ["org-model-q4_k_m", "qwen2-5", "plain_one", "etc-passwd"]
    overrides = ["servers.a.slots=2", "~servers.a", "+server=mine", "server=org/model"]  # `reload` takes both
    assert _process_names(overrides) == overrides
    assert _process_names(None) is None
