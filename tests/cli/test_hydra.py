"""What a Hydra user types works, or is answered with the launch command that does it."""

from __future__ import annotations

import pytest

from launcher.cli.arguments import hydra_answer, hydra_words
from launcher.compiler import compose_config

from .conftest import Cli

COMMANDS = ("up", "plan", "config")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--cfg job profile=dev", "launch config profile=dev"),
        ("-c job", "launch config"),
        ("--info config hardware=epyc", "launch config hardware=epyc"),
        ("-i", "launch config"),
        ("--resolve", "launch config"),
        ("-cn full ports=dev", "launch up profile=full ports=dev, or for a fleet file: launch up -f FILE"),
        ("--config-name=full", "launch up profile=full, or for a fleet file: launch up -f FILE"),
        ("-cp conf", "launch up --config-dir conf"),
        ("--hydra-help", "launch --help"),
        ("profile=dev --run", "launch up profile=dev"),
    ],
)
def test_each_option_is_answered(typed: str, said: str) -> None:
    """With the overrides that stand beside it."""
    answer = hydra_answer(typed.split(), COMMANDS)
    assert answer is not None
    assert answer.endswith(said)


@pytest.mark.parametrize("typed", ["config -c x", "profile=dev", "--json plan", "-d profile=dev", ""])
def test_what_is_ours_is_left_alone(typed: str) -> None:
    """Commands, their options, overrides."""
    assert hydra_answer(typed.split(), COMMANDS) is None


def test_the_config_directory_works() -> None:
    """`-cd` is `--config-dir`."""
    assert hydra_words(["-cd", "mine", "plan"]) == ["--config-dir", "mine", "plan"]


def test_now_is_refused(cli: Cli) -> None:
    """With what to type instead."""
    done = cli.run("plan", *cli.dev, "profile.name=a${now:%Y}", code=2)
    assert "profile.name=$(date +%Y-%m-%d)" in done.stderr + done.stdout


def test_a_saved_config_composes_to_the_same(cli: Cli) -> None:
    """`launch config --yaml > fleet.yaml`; what is printed for people says so, and is refused with it as a file."""
    (cli.home / "fleet.yaml").write_text(cli.run("config", "--yaml", *cli.dev).stdout)
    first, again = (cli.json("plan", *words) for words in (cli.dev, ("-f", "fleet.yaml")))
    for key in ("servers", "services", "totals", "hardware"):
        assert again[key] == first[key]
    shown = cli.run("config", *cli.dev)
    assert "launch config --yaml" in shown.stderr
    (cli.home / "shown.yaml").write_text(shown.stdout)
    assert "`launch config --yaml` writes a file" in cli.run("plan", "-f", "shown.yaml", code=2).stderr


@pytest.mark.parametrize(
    ("hardware", "profile"), [("epyc", "full"), ("sovereign", "three_tier"), ("two_hosts", "pair")]
)
def test_each_shipped_fleet_is_saved_whole(hardware: str, profile: str, cli: Cli) -> None:
    """Every value of the documents' fleets and of two hosts."""
    words = (f"hardware={hardware}", f"profile={profile}")
    saved = cli.home / "fleet.yaml"
    saved.write_text(cli.run("config", "--yaml", *words).stdout)
    assert compose_config((), config_dirs=(saved,)).fleet == compose_config(words).fleet
