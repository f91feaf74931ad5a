"""`launch memory`: list, export, forget, from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launcher.cli.memory import _only
from launcher.errors import ConfigError
from launcher.ir.project import ProjectSummary
from launcher.orchestrate import FILE_NAME, ProjectMemory
from tests.cli.conftest import Cli
from tests.orchestrate.test_memory import work


@pytest.fixture
def cli(tmp_path: Path, free_port: Callable[[], int], no_orphans: None) -> Cli:
    """A command line with two deployments' memories: `site` in both, `notes` in one."""
    for deployment in ("dev-a", "dev-b"):
        folder = tmp_path / "state" / "launch" / deployment
        (folder / "servers").mkdir(parents=True)
        memory = ProjectMemory(folder / FILE_NAME)
        work(memory)
        memory.decided("", "site", "x", {"model": "coder"})
        if deployment == "dev-a":
            memory.decided("alice", "notes", "y", {"model": "coder"})
        memory.close()
    return Cli(tmp_path, free_port)


def test_projects_are_listed_exported_and_forgotten(cli: Cli) -> None:
    """A line a project; all of one as JSON lines; several of one name are not guessed between; gone once forgotten."""
    lines = cli.run("memory").stdout.splitlines()
    assert lines[0].split()[:3] == ["DEPLOYMENT", "PROJECT", "OWNER"]
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["dev-a", "p", "-", "1", "5"],
        ["dev-a", "site", "-", "0", "0"],
    ]
    found = cli.json("memory", "--owner", "alice")["projects"]
    assert [(p["deployment"], p["name"]) for p in found] == [("dev-a", "notes")]
    exported = [json.loads(line) for line in cli.run("memory", "notes").stdout.splitlines()]
    assert [line["line"] for line in exported] == ["project", "note", "journal"]
    assert "known are notes, p, site" in cli.run("memory", "nobody", code=2).stderr
    assert "--deployment dev-b" in cli.run("memory", "site", code=2).stderr
    forgot = cli.run("memory", "p", "--deployment", "dev-b", "--forget")
    assert (forgot.stdout, forgot.stderr) == ("", "forgot p of dev-b: 1 answer, 5 blocks\n")
    assert [p["name"] for p in cli.json("memory", "--deployment", "dev-b")["projects"]] == ["site"]
    assert len(cli.json("memory", "--deployment", "dev-a")["projects"]) == 3
    drafts = cli.run("memory", "p", "--deployment", "dev-a", "--drafts").stdout.splitlines()
    assert drafts[0].startswith("p, ")
    assert drafts[0].endswith(": block 1 of g by coder, verdict 1")
    assert drafts[1:4] == ["  judge: fail: no", "  to change: do", "    a draft"]
    found = cli.json("memory", "--drafts")["drafts"]
    assert {(d["deployment"], d["project"], d["text"]) for d in found} == {("dev-a", "p", "a draft")}
    assert cli.run("memory", "notes", "--drafts").stderr == "nothing was refused\n"
    assert "either --drafts or --forget" in cli.run("memory", "notes", "--drafts", "--forget", code=2).stderr
    assert "needs the name of a project" in cli.run("memory", "--forget", code=2).stderr


def test_a_deployment_that_was_up_and_is_installed_now() -> None:
    """Both have the project: the installed one's is meant, which comes last; an owner more is still a question."""
    mine = ProjectSummary(owner="", name="site", generations=0, blocks=0, notes=0, last_at=0)
    known = [("dev-a", Path("/up"), mine), ("dev-a", Path("/installed"), mine)]
    assert _only("site", known, known)[1] == Path("/installed")
    other = msgspec.structs.replace(mine, owner="alice")
    with pytest.raises(ConfigError, match="several projects"):
        _only("site", [*known, ("dev-a", Path("/up"), other)], known)
