"""What `launch plan` says of a fleet that runs: what would change, and which command does it, if one does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.base.locks import LockOwner
from launcher.base.procfs import birth
from launcher.cli.build import show
from launcher.cli.fleet import DEPLOYMENT_NAME, recompile, write_compiled
from launcher.cli.reloaded import deployment_in, show_reloaded, split_kept, would_do
from launcher.cli.terminal import terminals
from launcher.compiler import compile_fleet, render
from launcher.errors import ConfigError
from launcher.files import write_atomic, write_deployment
from launcher.files.state import OwnedLock
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.manifest import diff_manifests
from launcher.supervise import LOCK_NAME

DEV = ("hardware=dev", "profile=dev")
SLOTS = "servers.assistant.slots=1"

Running = Callable[..., Path]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Makes a fleet that `up` was asked for and whose runtime is this process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    locks: list[OwnedLock] = []

    def run(*overrides: str, config_dirs: tuple[str, ...] = (), served: str = DEPLOYMENT_NAME) -> Path:
        """The fleet's state directory."""
        state = tmp_path / "launch/dev-dev"
        state.mkdir(parents=True)
        write_deployment(render(compile_fleet([*DEV, *overrides])).deployment, state / served)
        request = {"overrides": [*DEV, *overrides], "config_dirs": config_dirs}
        write_atomic(state / "request.json", json.dumps(request).encode())
        mine = birth(os.getpid())
        locks.append(OwnedLock(state / LOCK_NAME))
        locks[0].acquire(
            LockOwner(
                pid=os.getpid(),
                start_ticks=mine["start_ticks"],
                boot_id=mine["boot_id"],
                deployment=state.name,
                deployment_dir=str(state / served),
            )
        )
        return state

    yield run
    for lock in locks:
        lock.release()


def said(capsys: pytest.CaptureFixture[str], *overrides: str, config_dirs: tuple[Path, ...] = ()) -> list[str]:
    """The last lines of `launch plan`, of what would change."""
    capsys.readouterr()
    show([*DEV, *overrides], list(config_dirs), as_json=False, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("runs here")) :]


def test_what_runs_is_what_is_planned(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """A reload compiles the same, so does nothing."""
    running()
    assert said(capsys) == ["runs here under our runtime; `launch reload` would change nothing"]


def test_a_plan_with_more_overrides_is_a_reload_with_them(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is shown with what it lacks, and nothing else."""
    running()
    first, *rest = said(capsys, SLOTS)
    assert first == f"runs here under our runtime; `launch reload {SLOTS}` would do"
    assert [line[:11] for line in rest] == ["~ assistant"]


def test_a_plan_with_fewer_overrides_is_no_reload(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """A reload keeps what an earlier one, or `up`, was asked for: it would not bring back what this plan has."""
    state = running()
    write_compiled(recompile(state, (SLOTS,)))
    first, why, *rest = said(capsys)
    assert first == "runs here under our runtime; this plan would do"
    started = f"it was started with {SLOTS}, which a reload keeps and `launch switch hardware=dev profile=dev` drops"
    assert why == f"  no reload makes that plan of it: {started}"
    assert [line[:11] for line in rest] == ["~ assistant"]
    assert said(capsys, SLOTS) == ["runs here under our runtime; `launch reload` would change nothing"]
    assert said(capsys, "servers.assistant.slots=2")[0].endswith("`launch reload servers.assistant.slots=2` would do")


def test_a_kept_override_that_is_wrong_now_is_called_kept(running: Running, tmp_path: Path) -> None:
    """Nobody typed it this time; what was typed is not called so."""
    request = running() / "request.json"
    asked = json.loads(request.read_bytes())
    asked["overrides"].append("servers.gone.slots=1")
    request.write_text(json.dumps(asked))
    with pytest.raises(ConfigError) as refused:
        recompile(tmp_path / "launch/dev-dev", ("servers.nobody.slots=1",))
    kept = {
        f.key: any("kept from an earlier start or reload" in note for note in f.notes) for f in refused.value.findings
    }
    assert kept == {"servers.gone.slots": True, "servers.nobody.slots": False}


def test_a_plan_of_other_config_directories_is_no_reload(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A reload reads those of `up`."""
    running()
    (tmp_path / "mine").mkdir()
    assert "without --config-dir" in said(capsys, SLOTS, config_dirs=(tmp_path / "mine",))[1]


def test_a_served_fleet_is_not_reloaded(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """`launch serve` reads a directory that `reload` does not write."""
    running(served="served")
    assert "not by `launch up`" in said(capsys, SLOTS)[1]


WARM = (
    "+server@servers.second=assistant",
    "servers.second.tier=warm",
    "servers.second.port=18099",
    "servers.second.aliases=[]",
)


def test_who_comes_on_demand_is_not_started(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """A new server that starts when it is asked: said by `plan`, `reload --dry-run` and by a reload."""
    state = running()
    _, *rest = said(capsys, *WARM)
    assert "+ second  on demand: it comes up when it is asked" in rest
    before = deployment_in(state / DEPLOYMENT_NAME)
    after = render(compile_fleet([*DEV, *WARM])).manifest
    assert before is not None
    would = would_do(after, diff_manifests(before[0], after), ())
    assert (would["started"], would["on_demand"]) == ([], ["second"])
    now = FleetStatus(
        deployment="dev-dev",
        input_digest="",
        runtime_pid=1,
        front=None,
        ready=True,
        processes=tuple(
            ProcessStatus(name=name, kind="server", state="stopped", port=1) for name in ("assistant", "second")
        ),
    )
    done = split_kept({"kept": ["assistant", "second"]}, {"assistant"}, now)
    capsys.readouterr()
    show_reloaded(terminals()[0], done)
    assert capsys.readouterr().out.splitlines() == [
        "+ on demand: second  (up when they are asked)",
        "  not running, as before: assistant",
    ]
