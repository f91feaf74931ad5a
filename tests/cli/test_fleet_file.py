"""Which fleet file a command takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def fleet(cli: Cli, tiny_models: Callable[..., Path]) -> Path:
    """A fleet file in the home, of one tiny model."""
    shutil.copy(tiny_models("llama"), cli.home / "llama.gguf")
    path = cli.home / "launch.yaml"
    path.write_text(
        "servers: {chat: ~/llama.gguf}\n"
        f"ports: {{chat: {cli.server_port}}}\nruntime: {{front: {{port: {cli.front_port}}}}}\n"
    )
    return path


def test_the_file_is_found(cli: Cli, fleet: Path) -> None:
    """Here, in the user's config folder, or by name; a profile or a config directory that is named comes before."""
    here = cli.json("plan", "hardware=dev")
    assert [s["name"] for s in here["servers"]] == ["chat"]
    assert cli.json("plan", "hardware=dev", "profile=dev")["deployment"] == "dev-dev"
    assert cli.json("plan", "hardware=dev", "--config-dir", ".")["deployment"] == "dev-dev"
    usual = cli.home / ".config/launch/launch.yaml"
    usual.parent.mkdir(parents=True)
    fleet.rename(usual)
    assert cli.json("plan", "hardware=dev")["deployment"] == "dev-home"
    other = usual.rename(cli.home / "my fleet.yaml")
    assert cli.json("plan", "hardware=dev")["deployment"] == "dev-dev"
    assert cli.json("plan", "hardware=dev", "-f", str(other))["deployment"] == "dev-my-fleet"


def test_models_on_a_disk_that_is_not_mounted(cli: Cli, fleet: Path) -> None:
    """The plan knows them from launch.lock; what would start them says which file is missing, and that once."""
    planned = cli.json("plan")["servers"]
    (cli.home / "llama.gguf").rename(cli.home / "away")
    assert cli.json("plan")["servers"] == planned
    codes = [f["code"] for f in cli.json("check", code=6)["findings"] if f["severity"] == "error"]
    assert codes == ["host/file-missing"]


def test_a_fleet_file_that_is_not_one(cli: Cli, fleet: Path) -> None:
    """Each with what to do."""
    for words in (("-f", "absent.yaml"), ("-f", "llama.gguf"), ("-f", ".", "profile=dev")):
        done = cli.run("plan", *words, code=2)
        assert "error[config/no-fleet-file]" in done.stderr
        assert "  = " in done.stderr


def test_nothing_but_options_is_up(cli: Cli, fleet: Path) -> None:
    """`launch` in a folder with a fleet file starts it, and reload remembers the file; without one it is the help."""
    cli.run("--detach")
    try:
        assert cli.process("chat")["state"] == "ready"
        fleet.write_text(fleet.read_text().replace("chat: ~/llama.gguf", "chat: {file: ~/llama.gguf, slots: 1}"))
        (cli.home / "elsewhere").mkdir()
        assert "chat" in cli.run("reload").stdout
        assert cli.process("chat")["slots"] == 1
    finally:
        cli.run("stop", "--all")
    fleet.unlink()
    assert "Usage" in cli.run().stdout
