"""Units of systemd as owner of processes, without a booted systemd: what is read of it, and what it refuses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import SuperviseError
from launcher.files import write_atomic
from launcher.supervise import Supervisor, SystemdUnits, events
from launcher.supervise.lifecycle import Ready
from launcher.supervise.systemctl import read_states, unit_names
from tests.supervise.conftest import Watcher, fake, manifest

FreePort = Callable[[], int]
SHOWN = """Id=launch-a.service
LoadState=loaded
ActiveState=activating
SubState=auto-restart
Result=signal
MainPID=0
ExecMainCode=2
ExecMainStatus=9
NRestarts=3
ExecMainStartTimestampMonotonic=1500000

Id=launch-b.service
LoadState=loaded
ActiveState=active
SubState=running
Result=success
MainPID=4711
ExecMainCode=0
ExecMainStatus=0
NRestarts=0
ExecMainStartTimestampMonotonic=[not set]

Id=launch-c.service
LoadState=loaded
ActiveState=failed
SubState=failed
Result=exit-code
MainPID=0
ExecMainCode=1
ExecMainStatus=7
"""


def test_what_systemctl_shows_is_read() -> None:
    """One that runs, one that systemd is about to start again after a signal, one that failed with a code."""
    states = read_states(SHOWN)
    waiting, running, failed = (states[f"launch-{name}.service"] for name in "abc")
    assert (waiting.runs, waiting.will_return, waiting.is_over, waiting.code) == (False, True, True, -9)
    assert (waiting.restarts, waiting.started_s) == (3, 1.5)
    assert (running.runs, running.pid, running.is_over, running.code) == (True, 4711, False, None)
    assert (failed.runs, failed.will_return, failed.is_over, failed.code) == (False, False, True, 7)


async def test_the_end_of_a_process_is_known_before_what_became_of_its_unit(
    state_dir: Path, tmp_path: Path, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the process has ended no request is sent to it, however long systemd takes to say how it ended."""
    child = await asyncio.create_subprocess_exec("sleep", "600")
    program, shown, over = tmp_path / "bin/systemctl", tmp_path / "shown", tmp_path / "over"
    program.parent.mkdir()
    shown.write_text(f"Id=launch-alpha.service\nLoadState=loaded\nActiveState=active\nMainPID={child.pid}\n")
    over.write_text("Id=launch-alpha.service\nLoadState=loaded\nActiveState=failed\nExecMainCode=2\nExecMainStatus=9\n")
    program.write_text(f"#!/bin/sh\ncat {shown}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    owner = SystemdUnits("test", state_dir, write_atomic, prefix="launch", user=False)
    supervisor = Supervisor(manifest(fake("alpha", free_port())), state_dir=state_dir, owner=owner, emit=Watcher())
    runner = supervisor._runners["alpha"]
    (record,), _ = await owner.living(supervisor._specs)
    assert runner.adopt(record)
    runner.dispatch(Ready())
    assert supervisor.try_lease("alpha") is not None
    child.kill()
    await runner.wait_while(lambda: runner.life.usable)
    assert (runner.life.state, runner.routing_state, supervisor.try_lease("alpha")) == ("ready", "backoff", None)
    over.replace(shown)
    await runner.until("backoff")
    assert (runner.ending.code, runner.life.over) == (-9, False)
    supervisor.abandon()
    await child.wait()


def test_names_of_units() -> None:
    """The unit as planned, then one a fallback."""
    assert unit_names("llm", "a", 2) == ("llm-a.service", "llm-a.rung1.service", "llm-a.rung2.service")


async def test_what_the_manager_refuses(
    state_dir: Path, tmp_path: Path, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that polkit denies is the server's failure, in systemd's own words; nothing else of the fleet ends."""
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncase "$*" in *start*) echo "Access denied" >&2; exit 4 ;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    watcher = Watcher()
    owner = SystemdUnits("test", state_dir, write_atomic, prefix="launch", user=False)
    fleet = manifest(fake("alpha", free_port(), fatal=False))
    supervisor = Supervisor(fleet, state_dir=state_dir, owner=owner, emit=watcher)
    await supervisor.recover()
    with pytest.raises(SuperviseError, match=r"supervise/unit-refused.*alpha: Access denied"):
        await supervisor.start()  # nobody else is left that could answer
    (failed,) = watcher.of(events.ServerFailed)
    assert (failed.code, failed.cause) == ("supervise/unit-refused", "Access denied")
    assert supervisor.status().manager == "systemd"
    await supervisor.stop_all("end of test")


@pytest.mark.parametrize(("sub", "seen"), [("start", []), ("start-post", ["alpha"])])
async def test_a_unit_whose_program_is_not_there_yet_is_looked_at_later(
    sub: str, seen: list[str], state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between fork and exec its process is systemd's own helper: it would be taken for a stranger, and ended."""
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    shown = (
        f"Id=launch-alpha.service\nLoadState=loaded\nActiveState=activating\nSubState={sub}\nMainPID={os.getpid()}\n"
    )
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    owner = SystemdUnits("test", state_dir, write_atomic, prefix="launch", user=False)
    spec = Supervisor(manifest(fake("alpha", 1)), state_dir=state_dir, owner=owner, emit=Watcher())._specs
    records, _ = await owner.living(spec)
    assert [record.name for record in records] == seen
