"""An installed deployment has one owner, one install at a time, and what it consists of can be told again."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from launcher.cli.checkpointed import CheckpointSource
from launcher.cli.deploy import ask_runtime, require_not_up
from launcher.cli.fleet import require_not_installed
from launcher.errors import HostError, SuperviseError
from launcher.install import Layout, bundle_files, install_lock
from launcher.install.layout import placements
from launcher.install.steps import LOCK_NAME
from launcher.ir.deployment import Deployment, RenderedFile
from launcher.ir.live import FleetStatus
from launcher.supervise.control import NoRuntimeError


def test_up_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with what to do, running or not; another deployment is not."""
    there = SimpleNamespace(name="dev-dev", layout=Layout(scope="user", home=Path("/home/op")))
    monkeypatch.setattr("launcher.cli.fleet.installed_here", lambda _: (there,))
    with pytest.raises(HostError, match="dev-dev is installed: systemd --user runs it") as refused:
        require_not_installed("dev-dev")
    (finding,) = refused.value.findings
    assert finding.code == "supervise/already-running"
    assert "launch uninstall --user dev-dev" in finding.notes[1]
    require_not_installed("dev-other")


def test_install_of_what_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused on this machine; another deployment, or an image, is not."""
    status = FleetStatus(deployment="d", input_digest="", runtime_pid=4711, front=None, ready=True, processes=())
    monkeypatch.setattr("launcher.cli.deploy.fleets", lambda _: {Path("/state/d"): status})
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

        with install_lock(Layout(), say, runtime_dir=tmp_path):
            order.append("second")

    with install_lock(Layout(), said.append, runtime_dir=tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert said == ["another install, uninstall or reload is under way: waiting for it"]
    assert not (tmp_path / LOCK_NAME).exists()


def test_an_install_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    """What is left of it is only a file; and a tree that does not run needs no lock."""
    (tmp_path / LOCK_NAME).touch()
    said: list[str] = []
    with install_lock(Layout(), said.append, runtime_dir=tmp_path):
        assert (tmp_path / LOCK_NAME).exists()
    with install_lock(Layout(root=Path("/srv/image")), said.append, runtime_dir=tmp_path):
        assert not (tmp_path / LOCK_NAME).exists()
    assert said == []


class Runtime:
    """A runtime that dies in the first request of as many as it is told, as a client sees it."""

    deaths = 1

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def status(self) -> str:
        """Dead, or an answer."""
        Runtime.deaths -= 1
        if Runtime.deaths >= 0:
            raise NoRuntimeError("gone")
        return "answer"


@pytest.mark.parametrize(("deaths", "answered"), [(1, True), (2, False)])
def test_a_runtime_that_dies_while_it_is_asked(monkeypatch: pytest.MonkeyPatch, deaths: int, *, answered: bool) -> None:
    """The manager is waited for, and the next one asked; a second death is said."""
    monkeypatch.setattr(Runtime, "deaths", deaths)
    started: list[list[str]] = []
    monkeypatch.setattr("launcher.cli.deploy.reach_runtime", lambda _: Runtime())
    monkeypatch.setattr("launcher.cli.deploy.Systemd", lambda _: SimpleNamespace(start=started.append))
    component = SimpleNamespace(name="d", service="launch-d.service")
    installed: Any = SimpleNamespace(
        name="d", components=(component,), layout=Layout(), state_dir=Path("/nowhere/launch-d/d")
    )
    if answered:
        assert ask_runtime(installed, lambda runtime: runtime.status()) == "answer"  # type: ignore[comparison-overlap]
    else:
        with pytest.raises(SuperviseError, match="supervise/no-answer"):
            ask_runtime(installed, lambda runtime: runtime.status())
    assert started == [["launch-d.service"]] * deaths


def test_a_checkpoint_of_what_was_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed file that is not as it was installed is named, and nothing is kept."""
    edited = "/etc/systemd/system/launch-a.service was edited after it was installed"
    monkeypatch.setattr("launcher.cli.checkpointed.file_drift", lambda _: (edited,))
    installed: Any = SimpleNamespace(name="d")
    with pytest.raises(SuperviseError, match=f"checkpoint/not-what-runs.*{edited}"):
        CheckpointSource(Path("/kept/d"), Path("/state/d"), installed).files()


def test_what_is_installed_is_a_deployment_again(tmp_path: Path) -> None:
    """Every installed file by its path in the deployment, with its bits; scripts for people are not installed."""
    texts = {"systemd/launch-a.service": "[Service]\n", "polkit/50-launch-a.rules": "r", "fleet.json": "{}"}
    files = tuple(RenderedFile(path=p, text=t) for p, t in (*texts.items(), ("commands/a.sh", "#!/bin/sh\n")))
    layout = Layout(root=tmp_path)
    placed = placements(Deployment(name="d", input_digest="", files=files), layout)
    for path, file in placed.items():
        layout.tree.write(path, file.text.encode(), 0o644)
    found = bundle_files([str(Path("/") / path.relative_to(tmp_path)) for path in placed], layout, "d")
    assert {path: file.data.decode() for path, file in found.items()} == texts
