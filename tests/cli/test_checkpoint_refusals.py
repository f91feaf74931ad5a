"""What `launch checkpoint` and `launch memory` refuse: each refusal, and what comes near it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from launcher.cli.checkpoint import run_checkpoint
from launcher.cli.fleet import DEPLOYMENT_NAME, REQUEST_NAME, UpRequest, recompile, write_compiled
from launcher.cli.memory import show_memory
from launcher.cli.restore import _verify
from launcher.files.checkpoints import read_checkpoint
from launcher.ir.live import FleetStatus
from launcher.manifest import decode_fleet
from tests.cli.conftest import Cli, cli
from tests.cli.test_refusals import DEV, home, refusal

__all__ = ["cli", "home"]


def checkpoint(action: str, *names: str, deployment: str | None = None) -> int:
    """`launch checkpoint ACTION NAMES`."""
    return run_checkpoint(action, names, deployment=deployment, as_json=False)


@pytest.fixture
def state(home: Path) -> Path:
    """The state of a dev fleet that was brought up and has ended; it reads a template beside its model."""
    state = home / "launch" / "dev-dev"
    (state / "servers").mkdir(parents=True)
    template = home / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    overrides = (*DEV, f"servers.assistant.extra_args=[--chat-template-file,{template}]")
    (state / REQUEST_NAME).write_bytes(msgspec.json.encode(UpRequest(overrides=overrides, config_dirs=())))
    write_compiled(recompile(state))
    return state


def test_a_checkpoint_is_made_listed_and_dropped(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is refused where nothing is amiss."""
    for words in (("create", "one"), ("list",), ("diff", "one"), ("delete", "one")):
        assert checkpoint(*words) == 0
    assert "one" in capsys.readouterr().out


def test_words_that_do_not_fit(state: Path) -> None:
    """No such action, too few names, too many."""
    assert refusal(lambda: checkpoint("make", "x")) == "checkpoint/usage"
    assert refusal(lambda: checkpoint("diff")) == "checkpoint/usage"
    assert refusal(lambda: checkpoint("create", "a", "b")) == "checkpoint/usage"


def test_a_name_that_leads_elsewhere(state: Path) -> None:
    """Names stay names."""
    assert refusal(lambda: checkpoint("create", "../one")) == "checkpoint/bad-name"


def test_names_are_taken_once(state: Path) -> None:
    """Twice the same, and one that was never made."""
    checkpoint("create", "one")
    assert refusal(lambda: checkpoint("create", "one")) == "checkpoint/exists"


def test_a_name_that_was_never_made(state: Path) -> None:
    """Said with what there is."""
    assert refusal(lambda: checkpoint("delete", "two")) == "checkpoint/unknown"


def test_a_checkpoint_that_was_changed(state: Path) -> None:
    """Its files are not those that were written."""
    checkpoint("create", "one")
    (state / "checkpoints/one/deployment/fleet.json").write_text("{}")
    assert refusal(lambda: checkpoint("diff", "one")) == "checkpoint/damaged"


def test_a_record_that_nobody_wrote_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A time that no clock has, and no compiled fleet in it: it is listed, and refused, without a traceback."""
    checkpoint("create", "one")
    kept = state / "checkpoints" / "one" / "checkpoint.json"
    whole = read_checkpoint(state, "one")
    for contents in ({}, {"deployment/fleet.json": whole.contents["deployment/fleet.json"]}):
        kept.write_bytes(msgspec.json.encode(msgspec.structs.replace(whole, created_at=1e300, contents=contents)))
        assert checkpoint("list") == 0
        assert "one" in capsys.readouterr().out
    assert refusal(lambda: checkpoint("restore", "one")) == "manifest/unreadable"
    kept.write_bytes(msgspec.json.encode(msgspec.structs.replace(whole, contents={})))
    for action in ("diff", "restore"):
        assert refusal(lambda action=action: checkpoint(action, "one")) == "manifest/unreadable"


def test_there_is_nothing_to_keep(home: Path) -> None:
    """No fleet was ever brought up."""
    assert refusal(lambda: checkpoint("create", "one")) == "checkpoint/nothing-there"


def test_a_fleet_that_is_not_there(state: Path) -> None:
    """By name."""
    assert refusal(lambda: checkpoint("create", "one", deployment="nope")) == "checkpoint/unknown-deployment"


def test_one_of_two_fleets(state: Path) -> None:
    """Both could be meant; named, it is clear."""
    shutil.copytree(state, state.with_name("dev-other"))
    assert refusal(lambda: checkpoint("create", "one")) == "checkpoint/which-deployment"
    assert checkpoint("create", "one", deployment="dev-dev") == 0


def test_an_installed_fleet_is_not_taken_for_one_of_up(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fleet is installed, too, and nothing runs, `create` takes neither unnamed."""
    layout = SimpleNamespace(checkpoints=lambda name: state.parent / "kept" / name)
    there = SimpleNamespace(name="epyc-full", layout=layout, state_dir=Path("/nowhere/epyc-full"), components=())
    monkeypatch.setattr("launcher.cli.checkpointed.installed_here", lambda _: (there,))
    assert refusal(lambda: checkpoint("create", "one")) == "checkpoint/which-deployment"
    assert checkpoint("create", "one", deployment="dev-dev") == 0
    assert checkpoint("diff", "one") == 0


def test_a_file_that_changed_since(state: Path, home: Path) -> None:
    """What a server reads has another content now."""
    checkpoint("create", "one")
    (home / "own.jinja").write_text("{{ messages[1].content }}")
    assert refusal(lambda: checkpoint("restore", "one")) == "checkpoint/digest-differs"


def test_a_file_that_is_gone(state: Path, home: Path) -> None:
    """It is named."""
    checkpoint("create", "one")
    (home / "own.jinja").unlink()
    assert refusal(lambda: checkpoint("restore", "one")) == "checkpoint/file-missing"


def test_a_fleet_that_is_not_what_it_was(state: Path) -> None:
    """After a restore the runtime serves something else."""
    checkpoint("create", "one")
    kept = read_checkpoint(state, "one")
    manifest = decode_fleet((state / DEPLOYMENT_NAME / "fleet.json").read_bytes())
    status = FleetStatus(
        deployment="dev-dev", input_digest=kept.input_digest, runtime_pid=1, front=None, ready=True, processes=()
    )
    assert _verify(state, manifest, kept, status) == ()
    (found,) = _verify(state, manifest, kept, msgspec.structs.replace(status, input_digest="sha256:other"))
    assert found.code == "checkpoint/not-restored"


def test_a_fleet_that_runs_what_was_there_before(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled anew behind the runtime's back: what lies there is not what runs."""
    monkeypatch.setenv("XDG_STATE_HOME", cli.env["XDG_STATE_HOME"])
    cli.run("up", *cli.dev, "--detach")
    write_compiled(recompile(cli.home / "state/launch/dev-dev", ("servers.assistant.slots=1",)))
    assert "checkpoint/not-what-runs" in cli.run("checkpoint", "create", "one", code=7).stderr
    cli.run("stop", "--all")


def memory(name: str | None) -> int:
    """`launch memory NAME`."""
    return show_memory(name, deployment=None, owner=None, forget=False, as_json=False)


def test_a_project_that_is_not_there(home: Path) -> None:
    """No memory has it."""
    assert refusal(lambda: memory("book")) == "orchestrate/unknown-project"


def test_no_projects_are_no_mistake(home: Path) -> None:
    """The list is empty."""
    assert memory(None) == 0
