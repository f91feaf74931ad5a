"""What servers, models and files say of themselves drives no terminal, wherever a command shows it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.cli import memory, running
from launcher.cli.inspect import inspect_files
from launcher.cli.memory import show_drafts
from launcher.cli.progress import ProgressView
from launcher.cli.running import show_status
from launcher.cli.terminal import Terminal
from launcher.ir.live import FleetStatus, HookStatus, ProcessStatus
from launcher.ir.project import Draft, ProjectSummary
from launcher.supervise import events

Tiny = Callable[..., Path]
EVIL = "x\x1b]0;owned\x07\x9b2J"
SAID = r"x\x1b]0;owned\x07\x9b2J"


def filled(kind: type[msgspec.Struct], **fields: object) -> Any:
    """A record whose texts are all EVIL."""
    blanks: dict[type, object] = {str: EVIL, int: 0, float: 0.0}
    hints = {f.name: f.type for f in msgspec.structs.fields(kind) if f.required}
    return kind(**({name: blanks[hint] for name, hint in hints.items() if hint in blanks} | fields))


@pytest.mark.parametrize(
    "event",
    [
        events.ServerFailed(name="a", code="x/y", cause=EVIL, remedy=EVIL, tail=(f"a\t{EVIL}",)),
        events.HookDone(name="a", seconds=1.0, error=EVIL),
        events.Stopping(reason=EVIL),
        events.RungTaken(name="a", rung="", why=EVIL),
    ],
)
def test_events(event: events.AnyEvent) -> None:
    """Causes and the ends of logs quote what servers wrote."""
    stream = io.StringIO()
    ProgressView(Terminal(stream))(event)
    assert "\x1b" not in stream.getvalue()
    assert SAID in stream.getvalue()


def test_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of processes and of hooks."""
    process = ProcessStatus(name="a", kind="server", state="failed", port=1, error=EVIL, drift=EVIL)
    status = FleetStatus(
        deployment="d",
        input_digest="",
        runtime_pid=1,
        front=None,
        ready=False,
        processes=(process,),
        hooks=(HookStatus(name="h", kind="command", state="failed", on_failure="warn", error=EVIL),),
        drift=(EVIL,),
    )
    monkeypatch.setattr(running, "fleets", lambda _: {Path("/none"): status})
    monkeypatch.setattr(running, "installed_here", lambda _: ())
    assert show_status((), watch=False, as_json=False) == 7
    shown = capsys.readouterr().out
    assert shown.count(SAID) == 4
    assert "\x1b" not in shown


def test_drafts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What models wrote, and what judged it."""
    project = filled(ProjectSummary)
    draft = filled(Draft)
    monkeypatch.setattr(memory, "_projects", lambda *_: [("d", Path("/none"), project)])
    monkeypatch.setattr(memory, "list_drafts", lambda *_: [draft])
    assert show_drafts(None, deployment=None, owner=None, as_json=False) == 0
    assert memory.show_memory(None, deployment=None, owner=None, forget=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count(SAID) > 6


def test_files(tmp_path: Path, tiny_models: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """A name in a folder of downloads."""
    for name in ("a.gguf", f"{EVIL}.gguf"):
        os.link(tiny_models("llama"), tmp_path / name)
    assert inspect_files([str(tmp_path)], [], as_json=False) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert SAID in shown
