"""The verbs that people type."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli.app import command_names
from launcher.cli.arguments import COMMANDS_HERE, command_here
from launcher.cli.hub import install_command
from tests.children import killed_on_failure
from tests.cli.conftest import Cli


@pytest.fixture
def fleet(cli: Cli, tiny_models: Callable[..., Path]) -> Path:
    """A fleet file of two tiny servers."""
    shutil.copy(tiny_models("llama"), cli.home / "llama.gguf")
    path = cli.home / "launch.yaml"
    front = f"runtime: {{front: {{port: {cli.front_port}}}}}\n"
    ports = f"ports: {{one: {cli.server_port}, two: {cli.free_port()}}}\n"
    path.write_text(f"{front}{ports}servers: {{one: ~/llama.gguf, two: ~/llama.gguf}}\n")
    return path


def test_up_ps_restart_logs_down(cli: Cli, fleet: Path) -> None:
    """A day of a fleet in the words of docker compose."""
    said = cli.run("status").stdout
    assert f"`launch` starts what {fleet} says" in said
    cli.run("up", "--wait")
    try:
        assert [p["name"] for p in cli.json("ps")["fleets"][0]["processes"]] == ["one", "two"]
        before = [cli.process(name)["pid"] for name in ("one", "two")]
        cli.run("restart", "one")
        after = [cli.process(name)["pid"] for name in ("one", "two")]
        assert (after[0] != before[0], after[1]) == (True, before[1])
        cli.run("restart")
        assert cli.process("two")["pid"] != before[1]
        lines = cli.run("logs", "-n", "3").stdout.splitlines()
        assert len(lines) == 6
        assert {line.partition(" |")[0] for line in lines} == {"one", "two"}
        assert not cli.run("logs", "one", "-n", "1").stdout.startswith("one")
        assert "supervise/unknown-name" in cli.run("logs", "three", code=2).stderr
        assert [line["name"] for line in cli.json("logs", "-n", "2")["lines"]] == ["one", "one", "two", "two"]
        with killed_on_failure(cli.start("logs", "-f", "-n", "1", "--json")) as following:
            said = [json.loads(following.stdout.readline()) for _ in range(2)]
            following.terminate()
        assert [sorted(line) for line in said] == [["line", "name"]] * 2
        switched(cli, fleet)
    finally:
        down = cli.run("down").stdout
    assert down.startswith("stopped one, three")
    assert (
        len(cli.run("logs", "-n", "1").stdout.splitlines()) == 3
    )  # what is left of them, and of the one that was switched off
    fleet.unlink()
    assert "launch init" in cli.run("ps").stdout


def switched(cli: Cli, fleet: Path) -> None:
    """Another file becomes what runs: what is the same is not touched, and a reload goes on with the new one."""
    pid = cli.process("one")["pid"]
    other = fleet.with_name("evening.yaml")
    other.write_text(fleet.read_text().replace("two", "three"))
    assert "no running fleet is called night" in cli.run("switch", "-f", str(other), "--fleet", "night", code=2).stderr
    refused = cli.run("up", "-f", "evening.yaml", "profile.name=evening", code=6).stderr
    assert "`launch switch -f evening.yaml profile.name=evening` makes" in refused
    for line in ("profile.name=evening` would do\n", "+ three  start", "- two  stop", "1 stays as it is"):
        assert line in refused  # what the switch would do
    assert refused.count("error[") == 1  # that the ports are taken of those who stay is no news
    shown = cli.run("switch", "-f", str(other), "--dry-run").stdout
    assert "+ three  start" in shown
    assert "- two  stop" in shown
    assert {p["name"] for p in cli.json("ps")["fleets"][0]["processes"]} == {"one", "two"}
    plain = other.read_text()
    gone = Path(shutil.copy(cli.home / "llama.gguf", cli.home / "gone.gguf"))
    other.write_text(plain.replace("three: ~/llama.gguf", "three: ~/gone.gguf"))
    cli.run("plan", "-f", str(other))  # its lock file knows the model from here on
    gone.unlink()
    assert "error[host/file-missing]: three needs" in cli.run("switch", "-f", str(other), code=6).stderr
    assert {p["name"] for p in cli.json("ps")["fleets"][0]["processes"]} == {"one", "two"}
    other.write_text(plain)
    done = cli.json("switch", "-f", str(other))["fleets"][0]
    assert (done["started"], done["stopped"], done["kept"]) == (["three"], ["two"], ["one"])
    assert cli.process("one")["pid"] == pid
    assert cli.json("reload")["fleets"][0]["kept"] == ["one", "three"]


def test_verbs_of_others(cli: Cli) -> None:
    """Each is named as it is here, and exits as any wrong word does."""
    done = cli.run("start", code=2)
    assert "Here it is: launch up" in done.stderr
    assert "nothing can be switched" in cli.run("switch", "profile=dev", code=7).stderr
    assert "launch add hf:" in cli.run("download", "x", code=2).stderr
    assert "Did you mean 'status'" in cli.run("statsu", code=2).stderr
    assert command_here("statsu") is None
    assert command_here("my m.gguf") == "launch add 'my m.gguf', then launch"
    assert "launch add FILE" in cli.run("run", "x.gguf", code=2).stderr


@pytest.mark.parametrize(
    ("mark", "command"), [("pipx_metadata.json", "pipx inject"), ("uv-receipt.toml", "uv pip"), ("x", "-m pip")]
)
def test_how_a_package_comes_beside_launch(
    mark: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever made the environment."""
    (tmp_path / mark).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert command in install_command("huggingface_hub")


def test_no_verb_of_ours_is_taken_for_one_of_theirs() -> None:
    """And every command that the table names is one."""
    assert not COMMANDS_HERE.keys() & command_names()
    named = {text.split()[1] for text in COMMANDS_HERE.values() if text.startswith("launch ")}
    assert {word for word in named if not word.startswith("-")} <= command_names()
