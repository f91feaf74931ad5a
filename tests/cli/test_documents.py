"""What `--json` prints is what docs/schemas publishes: no key is missing, none is left out of the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.ir.answers import DOCUMENTS, json_schema
from launcher.orchestrate import FILE_NAME, ProjectMemory

from .conftest import Cli, holds

DEV = ("hardware=dev", "profile=dev")
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
CLI = Path(__file__).parents[2] / "launcher/cli"


def test_every_document_is_published() -> None:
    """docs/schemas has one file a document."""
    names = {f"{name.replace('/', '.')}.json" for name in DOCUMENTS}
    assert {path.name for path in SCHEMAS.iterdir()} == names


def test_no_command_prints_what_is_not_published() -> None:
    """Every schema that a command names is one of them."""
    named = {n for p in CLI.glob("*.py") for n in re.findall(r'"schema": "([^"]+)"', p.read_text(encoding="utf-8"))}
    assert named - set(DOCUMENTS) == set()


def test_what_is_left_to_explain_and_inspect(cli: Cli, tiny_models: Callable[..., Path]) -> None:
    """All codes, one; several files."""
    assert len(cli.json("explain")["codes"]) > 100
    assert [page["code"] for page in cli.json("explain", "plan/ram-over-budget")["codes"]] == ["plan/ram-over-budget"]
    assert len(cli.json("inspect", str(tiny_models("llama")), str(tiny_models("qwen2")))["files"]) == 2


@pytest.mark.parametrize("name", DOCUMENTS)
def test_published_schemas_are_current(name: str) -> None:
    """`json.dumps(json_schema(NAME), indent=2)` was written there."""
    published = (SCHEMAS / f"{name.replace('/', '.')}.json").read_text(encoding="utf-8")
    assert published == json.dumps(json_schema(name), indent=2) + "\n"


def test_check(cli: Cli) -> None:
    """With a note; and with errors of this host."""
    holds(cli.json("check", *cli.dev), "launch.check/v1")
    holds(cli.json("check", "hardware=epyc", "profile=hot_only", code=5), "launch.check/v1")


def test_config(cli: Cli) -> None:
    """All of it; origins of one server."""
    holds(cli.json("config", *DEV), "launch.config/v1")
    holds(cli.json("config", "servers.assistant", *DEV), "launch.config/v1")


def test_render(cli: Cli) -> None:
    """Files that are new, that nobody touched, and that differ."""
    holds(cli.json("render", *DEV, "-o", "out"), "launch.render/v1")
    holds(cli.json("render", *DEV, "-o", "out"), "launch.render/v1")
    (cli.home / "out/dev-dev/fleet.json").write_text("{}\n")
    changed = cli.json("render", *DEV, "-o", "out", "--check", code=8)
    holds(changed, "launch.render/v1")
    assert [change["kind"] for change in changed["changes"]] == ["changed"]


def test_memory(cli: Cli) -> None:
    """No project, and one."""
    holds(cli.json("memory"), "launch.memory/v1")
    folder = cli.home / "state/launch/dev-dev"
    (folder / "servers").mkdir(parents=True)
    memory = ProjectMemory(folder / FILE_NAME)
    memory.decided("alice", "notes", "x", {"model": "coder"})
    memory.close()
    document = cli.json("memory")
    holds(document, "launch.memory/v1")
    assert [project["name"] for project in document["projects"]] == ["notes"]


@pytest.mark.parametrize("command", ["plan", "check", "config", "render", "up"])
def test_errors(cli: Cli, command: str) -> None:
    """Every command that compiles prints its refusal the same way."""
    document = cli.json(command, "hardware=epic", code=2)
    holds(document, "launch.error/v1")
    assert document["error"] == "ConfigError"
