"""`launch top`: what is on the screen at 80 × 24 and wider, what keys do, and that the terminal is as it was."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import top
from launcher.cli.terminal import Terminal
from launcher.cli.top import SORTS, FleetsSeen, TopView, draw, press, typed
from launcher.ir.live import FleetStatus, ProcessStatus
from tests.children import killed_on_failure
from tests.cli.conftest import LAUNCH, Cli


def seen(servers: int = 3, requests: int = 2) -> FleetsSeen:
    """A fleet of so many servers and requests."""
    processes = tuple(
        ProcessStatus(
            name=f"server-{n:02}",
            kind="server",
            state="ready" if n % 2 else "failed",
            port=n,
            pid=n,
            slots=2,
            in_flight=n % 3,
            restarts=servers - n,
            model="a model\x1b[2J",
            planned_bytes={"ram": 100, "cuda0": 10},
            measured_bytes={"ram": 50 + n},
            tokens_per_second=float(n),
            log_tail=("first", "last \x1b]0;owned\x07"),
        )
        for n in range(servers)
    )
    status = FleetStatus(
        deployment="home", input_digest="", runtime_pid=1, front="http://x:1", ready=True, processes=processes
    )
    waiting: tuple[dict[str, Any], ...] = tuple(
        {
            "asked": f"asked-{n}",
            "server": "server-00",
            "path": "/v1/chat/completions",
            "client": "c",
            "seconds": n + 0.5,
            "state": "waiting",
            "generated_tokens": n,
        }
        for n in range(requests)
    )
    return FleetsSeen(((Path("/none"), status),), waiting)


def page_of(now: FleetsSeen, view: TopView, lines: int = 23, width: int = 80) -> list[str]:
    """What `draw` writes."""
    page = Terminal(io.StringIO())
    page.width = width
    draw(page, now, view, lines)
    assert isinstance(page.stream, io.StringIO)
    return page.stream.getvalue().splitlines()


@pytest.mark.parametrize(("lines", "width"), [(23, 80), (39, 120), (9, 80)])
@pytest.mark.parametrize("view", [{}, {"all_requests": True}, {"log": True}, {"chosen": 39}])
def test_a_screen_holds_fleet_devices_and_requests(lines: int, width: int, view: dict[str, Any]) -> None:
    """Fifty servers and requests never take more lines than there are; nothing that a terminal obeys is written."""
    drawn = page_of(seen(50, 50), TopView(**view), lines, width)
    assert len(drawn) <= lines
    assert not any("\x1b" in line or "\x07" in line for line in drawn)
    assert drawn[0].startswith("home  ready")
    assert drawn[1].startswith("cuda0")
    assert drawn[-1] == top.HELP
    if not view.get("log"):
        assert any("50 REQUESTS" in line for line in drawn)
        assert any("asked-0 → server-00" in line for line in drawn)
        chosen = f"> server-{min(view.get('chosen', 0), 49):02}"
        assert any(line.startswith(chosen) for line in drawn)
        assert any("/v1/chat" in line for line in drawn) == (width >= 110)
        assert all(len(line) <= 80 for line in drawn) or width > 80
    else:
        assert any(line.startswith("last ") for line in drawn)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrows choose, s goes through the orders, l and r turn, x asks first, q ends."""
    now, view = seen(), TopView()
    assert press("\x1b[B", view, now)
    assert view.chosen == 1
    for _ in range(9):
        press("\x1b[A", view, now)
    assert view.chosen == 0
    orders = []
    for _ in SORTS:
        press("s", view, now)
        orders.append((view.sort, now.rows(view.sort)[0][1].name))
    assert dict(orders) == {
        "state": "server-00",
        "memory": "server-02",
        "busy": "server-02",
        "speed": "server-02",
        "restarts": "server-00",
        "name": "server-00",
    }
    press("l", view, now)
    press("r", view, now)
    assert (view.log, view.all_requests) == (True, True)
    stopped: list[str] = []
    monkeypatch.setattr(top, "_stop", lambda chosen: stopped.append(chosen[1].name) or "done")
    press("x", view, now)
    assert "stop server-00? y: yes" in page_of(now, view)[-1]
    press("n", view, now)
    press("y", view, now)
    assert stopped == []
    press("x", view, now)
    press("y", view, now)
    assert (stopped, view.notice) == (["server-00"], "done")
    assert press("x", TopView(), FleetsSeen((), ()))
    assert not press("q", view, now)


def test_keys_that_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that repeats, and arrows of either kind, all count; a pasted word that has x and y stops nothing."""
    now, view = seen(5), TopView()
    assert typed("\x1b[B\x1b[B\x1bOBk", view, now)
    assert view.chosen == 2
    stopped: list[str] = []
    monkeypatch.setattr(top, "_stop", lambda chosen: stopped.append(chosen[1].name) or "done")
    assert typed("proxyq", view, now)
    assert (stopped, view.asks, view.all_requests) == ([], True, True)
    assert typed("y", view, now)
    assert stopped == ["server-02"]
    assert not typed("sq", view, now)


def test_the_terminal_is_as_it_was(cli: Cli) -> None:
    """On a real one; without one it says what is for scripts."""
    assert "top needs a terminal" in cli.run("top", code=2).stderr
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [LAUNCH, "top"]
    with killed_on_failure(
        subprocess.Popen(command, cwd=cli.home, env=cli.env, stdin=theirs, stdout=theirs, stderr=theirs)
    ) as process:
        shown = b""
        deadline = time.monotonic() + 90
        while b"nothing runs" not in shown:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65536)
        os.write(ours, b"q")
        assert process.wait(20) == 0
    assert termios.tcgetattr(theirs) == before
    shown += os.read(ours, 65536)
    assert shown.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
    os.close(ours)
    os.close(theirs)
