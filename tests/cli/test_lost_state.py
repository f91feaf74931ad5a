"""Commands where the state of a fleet is lost, spoilt or not to be read: the truth is said, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import supervise
from launcher.base import procfs
from launcher.cli.installed import installed_here
from launcher.cli.running import fleets, show_status, stop_servers
from launcher.errors import Finding
from launcher.install.layout import Layout
from launcher.runtime import ControlClient, NoRuntimeError, spawn_detached
from tests.supervise.conftest import fake, manifest, write_deployment_dir

FreePort = Callable[[], int]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state root with nothing in it."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def until(holds: Callable[[], bool]) -> None:
    """Poll until `holds()`."""
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(state: Path) -> bool:
    """Whether the runtime of `state` is reached."""
    try:
        with ControlClient(state) as client:
            return client.status().ready
    except NoRuntimeError:
        return False


def test_a_lock_that_comes_back_while_a_fleet_is_stopped(
    root: Path, tmp_path: Path, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was away for a moment, so that the runtime seemed to have ended: it is told to end again."""
    spawn_detached(write_deployment_dir(tmp_path / "d", manifest(fake("one", free_port())), free_port()))
    until(lambda: answers(root / "test"))
    really_end, ends = supervise.end_runtime, []

    def end(state: Path, *, wait_s: float, report: Callable[[str], None]) -> None:
        """Find no lock the first time."""
        ends.append(state)
        if len(ends) > 1:
            really_end(state, wait_s=wait_s, report=report)

    monkeypatch.setattr(supervise, "end_runtime", end)
    assert stop_servers((), everything=True, as_json=False) == 0
    assert len(ends) == 2
    assert not answers(root / "test")


def test_the_state_of_a_running_fleet_is_removed(
    root: Path, tmp_path: Path, free_port: FreePort, capsys: pytest.CaptureFixture[str]
) -> None:
    """H16: what lives is found by its mark at once, the runtime makes its state again, and stop ends everything."""
    pid = spawn_detached(write_deployment_dir(tmp_path / "d", manifest(fake("one", free_port())), free_port()))
    state = root / "test"
    shutil.rmtree(root)
    (status,) = fleets().values()
    assert (status.runtime_pid, [p.name for p in status.processes]) == (pid, ["one"])
    until(lambda: answers(state))
    assert (state / "servers/one.json").is_file()
    shutil.rmtree(state / "servers")  # a part of it, and the socket alone
    (state / "control.sock").unlink()
    until(lambda: answers(state) and (state / "servers/one.json").is_file())
    server = next(p.pid for p in next(iter(fleets().values())).processes)
    shutil.rmtree(root)
    assert stop_servers((), everything=True, as_json=False) == 0
    assert "stopped one" in capsys.readouterr().out
    until(lambda: all((stat := procfs.proc_stat(gone or 0)) is None or stat.state == "Z" for gone in (pid, server)))
    assert fleets() == {}


def test_what_cannot_be_read_hides_no_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """H18: a lock that leads in a circle, a directory that does: a sentence each, and exit code 6."""
    (root / "bad/servers").mkdir(parents=True)
    (root / "bad/runtime.lock").symlink_to("runtime.lock")
    (root / "loop").symlink_to("loop")
    (root / "good/servers").mkdir(parents=True)
    problems: list[Finding] = []
    assert fleets(problems) == {}
    assert {f.code for f in problems} == {"host/cannot-read"}
    assert show_status((), watch=False, as_json=False) == 6
    assert stop_servers((), everything=True, as_json=False) == 6
    said = capsys.readouterr()
    assert "bad/runtime.lock cannot be read" in said.err
    assert "nothing runs" not in said.out
    assert "nothing was running" not in said.out


def test_a_state_root_that_is_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The directory of all leads in a circle: nothing is claimed."""
    root.rmdir()
    root.symlink_to(root.name)
    assert show_status((), watch=False, as_json=False) == 6
    assert "whether anything runs is not known" in capsys.readouterr().err


def test_names_that_are_no_deployments(root: Path) -> None:
    """Directories of others between ours are not taken for deployments."""
    for name in ("with blank", "-dash", ".hidden", "new\nline"):
        (root / name / "servers").mkdir(parents=True)
    (root / "file").write_text("")
    problems: list[Finding] = []
    assert (fleets(problems), problems) == ({}, [])


def test_a_damaged_record_hides_no_other(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An install record that is none is a finding, not the end of `status`."""
    records = Layout(scope="user", home=tmp_path).records
    records.mkdir(parents=True)
    (records / "x.json").write_text("{}")
    problems: list[Finding] = []
    assert installed_here(problems) == ()
    assert [f.code for f in problems] == ["install/damaged"]
    assert os.environ["LAUNCH_STATE_DIR"] == str(root)
