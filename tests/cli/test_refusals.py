"""What commands refuse because of who asks, what runs and what is installed: each refusal, and what comes near it."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from launcher.base.locks import LockOwner
from launcher.base.procfs import birth
from launcher.cli.deploy import install_fleet, layout_of
from launcher.cli.fleet import DEPLOYMENT_NAME, REQUEST_NAME, UpRequest, recompile, write_compiled
from launcher.cli.installed import require_rights
from launcher.cli.reload import reload_servers
from launcher.cli.running import stop_servers
from launcher.compiler import compile_fleet, render
from launcher.errors import ConfigError, HostError, LaunchError, SuperviseError
from launcher.files import write_deployment
from launcher.files.state import OwnedLock
from launcher.install import Layout
from launcher.install.steps import not_active
from launcher.install.systemd import Systemd
from launcher.ir.fleet import ServiceUnit
from launcher.route.journal import Journal
from launcher.supervise import LOCK_NAME, end_runtime
from launcher.supervise.causes import obstacle
from launcher.supervise.detached import spawn_runtime
from launcher.supervise.ending import reach_runtime
from launcher.supervise.spec import ProcessSpec, process_specs

DEV = ("hardware=dev", "profile=dev")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state root of its own, in which nothing runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def refusal(call: Callable[[], object]) -> str:
    """The one code that `call` is refused with."""
    with pytest.raises(LaunchError) as refused:
        call()
    (finding,) = refused.value.findings
    assert finding.message
    return finding.code


# --- nothing runs ----------------------------------------------------------------------------------------------


def test_stop_must_be_told_what(home: Path) -> None:
    """Neither names nor --all, and both, are no way to ask."""
    plain = {"as_json": False}
    assert refusal(lambda: stop_servers((), everything=False, **plain)) == "config/usage"
    assert refusal(lambda: stop_servers(("coder",), everything=True, **plain)) == "config/usage"


def test_stop_of_everything_may_find_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is no mistake."""
    assert stop_servers((), everything=True, as_json=False) == 0
    assert capsys.readouterr().out == "nothing was running\n"


def test_stop_of_a_name_that_nothing_has(home: Path) -> None:
    """Said with what runs."""
    code = refusal(lambda: stop_servers(("coder",), everything=False, as_json=False))
    assert code == "supervise/unknown-name"


def test_reload_needs_a_runtime(home: Path) -> None:
    """There is nothing to change."""
    assert refusal(lambda: reload_servers((), as_json=False)) == "supervise/nothing-runs"


# --- reload ----------------------------------------------------------------------------------------------------


def asked(home: Path, name: str) -> Path:
    """A state directory in which `up` of the dev fleet left its request."""
    state = home / name
    state.mkdir()
    (state / REQUEST_NAME).write_bytes(msgspec.json.encode(UpRequest(overrides=DEV, config_dirs=())))
    return state


def test_reload_compiles_what_up_was_asked_for(home: Path) -> None:
    """The same again, with more."""
    target = write_compiled(recompile(asked(home, "dev-dev"), ("servers.assistant.slots=1",)))
    assert target == home / "dev-dev" / DEPLOYMENT_NAME


def test_reload_of_what_up_did_not_start(home: Path) -> None:
    """No request, or one that is none."""
    (home / "dev-dev").mkdir()
    assert refusal(lambda: recompile(home / "dev-dev")) == "supervise/no-request"
    (home / "dev-dev" / REQUEST_NAME).write_text("{}")
    assert refusal(lambda: recompile(home / "dev-dev")) == "supervise/no-request"


def test_reload_into_another_deployment(home: Path) -> None:
    """Another profile is another fleet."""
    state = asked(home, "dev-dev")
    assert refusal(lambda: recompile(state, ("profile.name=other",))) == "manifest/other-deployment"


# --- reaching and ending a runtime -----------------------------------------------------------------------------


@contextmanager
def held(state: Path) -> Iterator[Path]:
    """A state directory whose lock this process holds, and names itself in it."""
    state.mkdir()
    mine = birth(os.getpid())
    owner = LockOwner(pid=os.getpid(), start_ticks=mine["start_ticks"], boot_id=mine["boot_id"], deployment=state.name)
    lock = OwnedLock(state / LOCK_NAME)
    lock.acquire(owner)
    try:
        yield state
    finally:
        lock.release()


def test_a_runtime_that_is_not_there_does_not_answer(tmp_path: Path) -> None:
    """Nobody holds the lock."""
    assert refusal(lambda: reach_runtime(tmp_path)) == "supervise/no-answer"


def test_a_runtime_that_does_not_end_in_time(tmp_path: Path) -> None:
    """It is named, and is left alone by a caller who does not wait longer."""
    with held(tmp_path / "dev-dev") as state:
        assert refusal(lambda: end_runtime(state, wait_s=0.1, report=print)) == "supervise/still-running"


def test_a_lock_that_names_nobody(tmp_path: Path) -> None:
    """Whoever holds it gets no signal."""
    lock = tmp_path / LOCK_NAME
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(lambda: end_runtime(tmp_path, wait_s=20, report=print)) == "supervise/lock-unnamed"


def test_nothing_is_to_be_ended(tmp_path: Path) -> None:
    """A free lock: at once, without a word."""
    (tmp_path / LOCK_NAME).touch()
    said: list[str] = []
    end_runtime(tmp_path, wait_s=1, report=said.append)
    assert said == []


@pytest.mark.parametrize(("code", "expected"), [(3, "supervise/runtime-died"), (0, "supervise/stopped-early")])
def test_a_runtime_that_ends_before_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: str
) -> None:
    """It crashed, or was told to: two causes. The interpreter that it would run in ends at once instead."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    state, target = tmp_path / "state", tmp_path / "deployment"
    state.mkdir()
    write_deployment(render(compile_fleet(DEV)).deployment, target)
    monkeypatch.setattr(sys, "executable", str(program))
    assert refusal(lambda: spawn_runtime(target, state, print)) == expected


# --- units -----------------------------------------------------------------------------------------------------


def systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> Systemd:
    """The machine's units, with a systemctl of our own on the path, or none."""
    if script is not None:
        for name, text in (("systemctl", script), ("journalctl", "echo the end")):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return Systemd(Layout())


def test_units_of_the_machine_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine; not those of a user, nor of an image."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(HostError) as refused:
        require_rights(Layout(), "installed")
    assert [f.code for f in refused.value.findings] == ["install/not-root"]


def test_other_units_do_not_need_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's own, an image's, and root's."""
    require_rights(Layout(root=tmp_path), "installed") if os.geteuid() else require_rights(Layout(), "installed")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    require_rights(Layout(scope="user", home=tmp_path), "installed")
    require_rights(Layout(root=tmp_path), "installed")


def test_a_machine_without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No systemctl on the path."""
    systemd = systemctl(tmp_path, monkeypatch, None)
    assert refusal(lambda: systemd.start(["a.service"])) == "install/no-systemd"


def test_what_systemctl_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own words."""
    systemd = systemctl(tmp_path, monkeypatch, "echo 'Unit a.service is masked.' >&2; exit 1")
    with pytest.raises(SuperviseError, match=r"install/systemctl.*Unit a\.service is masked\."):
        systemd.enable(["a.service"])


def test_what_systemctl_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to say."""
    systemd = systemctl(tmp_path, monkeypatch, "exit 0")
    systemd.enable(["a.service"])
    assert systemd.start(["a.service"]) == 0


def test_a_restart_that_is_asked_for_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd would count it, and refuse the sixth in two minutes."""
    systemd = systemctl(tmp_path, monkeypatch, f'echo "$@" >> {tmp_path}/said')
    assert systemd.restart(["a.service"]) == 0
    said = [line.split()[-2:] for line in (tmp_path / "said").read_text().splitlines()]
    assert said == [["reset-failed", "a.service"], ["restart", "a.service"]]


def test_a_unit_that_did_not_become_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state and result, and the end of its log."""
    systemd = systemctl(tmp_path, monkeypatch, "printf 'Id=a.service\\nActiveState=failed\\nResult=exit-code\\n'")
    found = not_active("a.service", systemd)
    assert (found.code, found.message) == ("install/not-active", "a.service is failed (exit-code)")
    assert found.notes == ("the end",)


# --- before a process is made ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "expected"), [(True, "supervise/container-engine-missing"), (False, "supervise/binary-missing")]
)
def test_a_program_that_is_not_there(free_port: Callable[[], int], container: bool, expected: str) -> None:
    """A container's engine, or the server's own program."""
    found = obstacle(process("/no/such/program", free_port(), container=container))
    assert found is not None
    assert found.code == expected


@pytest.mark.parametrize("container", [True, False])
def test_a_program_that_is_there(free_port: Callable[[], int], container: bool) -> None:
    """Nothing is in the way."""
    assert obstacle(process("sh", free_port(), container=container)) is None


def process(program: str, port: int, *, container: bool) -> ProcessSpec:
    """The dev fleet's process, run by another program."""
    rendered = render(compile_fleet(DEV)).manifest
    server = msgspec.structs.replace(rendered.servers[0], name="assistant", argv=(program,), port=port)
    service = ServiceUnit(
        name="assistant",
        argv=(program,),
        env={},
        host="127.0.0.1",
        port=port,
        health_path="/",
        start="boot",
        start_timeout_s=1,
        fatal=False,
        ram_bytes=0,
        builtin=None,
        container="image",
    )
    units = {"servers": (), "services": (service,)} if container else {"servers": (server,)}
    return process_specs(msgspec.structs.replace(rendered, **units))["assistant"]


# --- the front -------------------------------------------------------------------------------------------------


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    """A directory that is not there."""
    assert refusal(lambda: Journal(str(tmp_path / "none" / "requests.jsonl"))) == "route/journal-unwritable"


def test_a_journal_that_can(tmp_path: Path) -> None:
    """It is made, for its owner alone."""
    path = tmp_path / "requests.jsonl"
    Journal(str(path))
    assert path.stat().st_mode & 0o777 == 0o600


def test_refusals_keep_their_exit_codes(home: Path) -> None:
    """Usage is 2, what runs is 7."""
    with pytest.raises(ConfigError):
        stop_servers((), everything=False, as_json=False)
    with pytest.raises(SuperviseError):
        reload_servers((), as_json=False)


def test_a_removal_alone_is_no_folder_to_install(home: Path) -> None:
    """`launch install ~servers.x`: an override like any other."""
    layout = layout_of(user=False, root=home / "tree")
    asked = {"dry_run": True, "force": False, "start": False, "host": None, "as_json": False}
    assert refusal(lambda: install_fleet(["~servers.nobody"], [], layout, **asked)) == "config/unknown-key"
