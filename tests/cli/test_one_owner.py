"""A deployment has one owner: `up` where it is installed, `install` where it is up, and two installs at once."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.cli.one_owner import require_not_installed, require_not_up
from launcher.errors import HostError
from launcher.install import Layout, alone
from launcher.install.alone import NAME
from launcher.ir.live import FleetStatus


def test_up_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with what to do, running or not; another deployment is not."""
    there = SimpleNamespace(name="dev-dev", layout=Layout(scope="user", home=Path("/home/op")))
    monkeypatch.setattr("launcher.cli.one_owner.installed_here", lambda _: (there,))
    with pytest.raises(HostError, match="dev-dev is installed: systemd --user runs it") as refused:
        require_not_installed("dev-dev")
    (finding,) = refused.value.findings
    assert finding.code == "supervise/already-running"
    assert "launch uninstall --user dev-dev" in finding.notes[1]
    require_not_installed("dev-other")


def test_install_of_what_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused on this machine; another deployment, or an image, is not."""
    status = FleetStatus(deployment="d", input_digest="", runtime_pid=4711, front=None, ready=True, processes=())
    monkeypatch.setattr("launcher.cli.running.fleets", lambda _: {Path("/state/d"): status})
    with pytest.raises(HostError, match="d runs under `launch up`, its runtime is pid 4711"):
        require_not_up("d", Layout())
    require_not_up("e", Layout())
    require_not_up("d", Layout(root=Path("/srv/image")))


def test_installs_wait_for_each_other(tmp_path: Path) -> None:
    """The second says that it waits, and goes on when the first has ended; no file is left."""
    said: list[str] = []
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        def say(line: str) -> None:
            said.append(line)
            waits.set()

        with alone(Layout(), say, runtime_dir=tmp_path):
            order.append("second")

    with alone(Layout(), said.append, runtime_dir=tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert said == ["another install, uninstall or reload is under way: waiting for it"]
    assert not (tmp_path / NAME).exists()


def test_an_install_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    """What is left of it is only a file; and a tree that does not run needs no lock."""
    (tmp_path / NAME).touch()
    said: list[str] = []
    with alone(Layout(), said.append, runtime_dir=tmp_path):
        assert (tmp_path / NAME).exists()
    with alone(Layout(root=Path("/srv/image")), said.append, runtime_dir=tmp_path):
        assert not (tmp_path / NAME).exists()
    assert said == []
