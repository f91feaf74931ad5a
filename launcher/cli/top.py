"""`launch top`: fleet, devices and requests on one screen of the window's size, with keys. I/O: the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.events import shown
from launcher.cli.running import all_fleets
from launcher.cli.terminal import Screen, Terminal, terminals
from launcher.errors import ConfigError, LaunchError
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.sizes import gib
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.logs import tail

EVERY_S = 1.0
SORTS = ("name", "state", "memory", "busy", "speed", "restarts")
_STYLES = {"ready": "green", "sleeping": "green", "failed": "red", "backoff": "red", "starting": "yellow"}
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)
HELP = "q quit   ↑↓ choose   s sort   l log   x stop   r requests"


class TopView(msgspec.Struct):
    """What is chosen on the screen."""

    sort: str = "name"
    chosen: int = 0
    log: bool = False
    asks: bool = False
    """Whether to stop the chosen one: the next key answers."""
    all_requests: bool = False
    notice: str = ""


class FleetsSeen(msgspec.Struct, frozen=True):
    """One look at every fleet."""

    fleets: tuple[tuple[Path, FleetStatus], ...]
    requests: tuple[dict[str, Any], ...]

    def rows(self, sort: str) -> list[tuple[Path, ProcessStatus]]:
        """Every process with its fleet's directory, in the order that is asked for."""
        rows = [(directory, process) for directory, status in self.fleets for process in status.processes]
        keys: dict[str, Callable[[ProcessStatus], Any]] = {
            "name": lambda p: p.name,
            "state": lambda p: (p.state, p.name),
            "memory": lambda p: (-sum((p.measured_bytes or p.planned_bytes).values()), p.name),
            "busy": lambda p: (-(p.in_flight or 0) - p.queued, p.name),
            "speed": lambda p: (-(p.tokens_per_second or 0), p.name),
            "restarts": lambda p: (-p.restarts, p.name),
        }
        return sorted(rows, key=lambda row: keys[sort](row[1]))


def take_snapshot() -> FleetsSeen:
    """Ask every fleet for its status and requests."""
    found = all_fleets()
    requests: list[dict[str, Any]] = []
    for directory, status in found.items():
        if status.runtime_pid:
            with contextlib.suppress(NoRuntimeError, RuntimeError, KeyError), ControlClient(directory) as control:
                requests += control.requests()["now"]
    return FleetsSeen(tuple(found.items()), tuple(requests))


def draw(page: Terminal, seen: FleetsSeen, view: TopView, lines: int) -> None:
    """Write one screen of at most `lines` lines."""
    rows = seen.rows(view.sort)
    view.chosen = max(0, min(view.chosen, len(rows) - 1))
    for _, status in seen.fleets:
        state = page.style("ready", "green") if status.ready else page.style("not ready", "yellow")
        page.line(f"{page.style(status.deployment, 'bold')}  {state}  {status.front or ''}")
        page.line(_devices(page, status))
    if not seen.fleets:
        page.line("nothing runs")
    left = lines - 2 * max(1, len(seen.fleets)) - 3
    if view.log and rows:
        _log(page, rows[view.chosen][1], left)
    else:
        _body(page, seen, view, rows, left)
    chosen = rows[view.chosen][1].name if rows else ""
    page.line(page.style(f"stop {chosen}? y: yes, any other key: no" if view.asks else view.notice or HELP, "bold"))


def _devices(page: Terminal, status: FleetStatus) -> str:
    planned: dict[str, int] = {}
    measured: dict[str, int] = {}
    for process in status.processes:
        for device, size in process.planned_bytes.items() if process.pid else ():
            planned[device] = planned.get(device, 0) + size
        for device, size in process.measured_bytes.items():
            measured[device] = measured.get(device, 0) + size
    parts = []
    for device in sorted({*planned, *measured}):
        share = measured.get(device, 0) / planned[device] if planned.get(device) else 0.0
        parts.append(f"{device} {page.bar(share, 8)} {gib(measured.get(device, 0))} of {gib(planned.get(device, 0))}")
    return "  ".join(parts) or "no memory measured"


def _body(page: Terminal, seen: FleetsSeen, view: TopView, rows: list[tuple[Path, ProcessStatus]], left: int) -> None:
    """Write the processes, then the requests; the chosen process is always visible."""
    wide = page.width >= 110
    for_requests = min(len(seen.requests) + 1, left - 2 if view.all_requests else max(2, left // 3))
    room = max(1, left - for_requests)
    first = max(0, view.chosen - room + 1)
    page.line(
        page.style(
            f"  {'SERVER':<20} {'STATE':<9} {'BUSY':>6} {'WAIT':>4} {'TOK/S':>7} {'MEMORY':>10} {'RESTARTS':>8}", "dim"
        )
    )
    for at, (_, process) in enumerate(rows[first : first + room], first):
        memory = gib(sum((process.measured_bytes or process.planned_bytes).values()))
        busy = f"{process.in_flight}/{process.slots}" if process.slots and process.in_flight is not None else ""
        speed = f"{process.tokens_per_second:.1f}" if process.tokens_per_second else ""
        state = page.style(f"{process.state:<9}", *([_STYLES[process.state]] if process.state in _STYLES else []))
        name = f"{'>' if at == view.chosen else ' '} {process.name:<20.20}"
        more = f"  {process.model}{f'  {process.error}' if process.error else ''}" if wide else ""
        page.line(
            f"{page.style(name, 'bold') if at == view.chosen else name} {state} {busy:>6} {process.queued or '':>4} "
            f"{speed:>7} {memory:>10} {process.restarts or '':>8}{shown(more)}"
        )
    page.line(page.style(f"  {f'{len(seen.requests)} REQUESTS':<14}{'AGE':>4} {'STATE':<9} {'PARTS':>6}  ASKED", "dim"))
    for request in seen.requests[: max(0, for_requests - 1)]:
        path = f"  {request['path']}  {request['client']}" if wide else ""
        text = f"{request['asked']} → {request['server']}{path}"
        age, parts = request["seconds"], request["generated_tokens"]
        page.line(f"  {'':<10} {age:>8.1f} {request['state']:<9} {parts:>6}  {shown(text)}")


def _log(page: Terminal, process: ProcessStatus, left: int) -> None:
    page.line(page.style(f"log of {process.name}", "dim"))
    for line in tail(Path(process.log_file), max(1, left)) if process.log_file else process.log_tail[-left:]:
        page.line(shown(line))


def typed(text: str, view: TopView, seen: FleetsSeen) -> bool:
    """Handle what one read of the keyboard gave, key by key; False: quit.

    Keys after one that asks a question are dropped: only a user who has seen the question can answer it, so that no
    pasted word stops anything.
    """
    for key in _KEY.findall(text):
        if not press(key, view, seen):
            return False
        if view.asks:
            break
    return True


def press(key: str, view: TopView, seen: FleetsSeen) -> bool:
    """Apply a key to the view; False: quit. `y` after `x` stops the chosen process."""
    rows = seen.rows(view.sort)
    chosen = rows[view.chosen] if rows and view.chosen < len(rows) else None
    asked, view.asks, view.notice = view.asks, False, ""
    if asked:
        if key == "y" and chosen is not None:
            view.notice = _stop(chosen)
        return True
    if key in ("q", "\x03", "\x04"):
        return False
    if key in ("\x1b[A", "\x1bOA", "k"):
        view.chosen = max(0, view.chosen - 1)
    elif key in ("\x1b[B", "\x1bOB", "j"):
        view.chosen += 1
    elif key == "s":
        view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
        view.notice = f"sorted by {view.sort}"
    elif key == "l":
        view.log = not view.log
    elif key == "r":
        view.all_requests = not view.all_requests
    elif key == "x":
        view.asks = chosen is not None
    return True


def _stop(chosen: tuple[Path, ProcessStatus]) -> str:
    directory, process = chosen
    try:
        with ControlClient(directory) as control:
            control.stop((process.name,))
    except (NoRuntimeError, KeyError, LaunchError) as error:
        return f"{process.name} is not stopped: {error}"
    return f"{process.name} is stopped"


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def show_top() -> int:
    """Draw until `q` or Ctrl-C. Raises ConfigError if there is no terminal to draw on."""
    out, _ = terminals()
    if not (out.interactive and sys.stdin.isatty()):
        message, notes = "top needs a terminal", ("`launch status --json` and `launch events --json` are for scripts",)
        raise ConfigError.of("config/usage", message, *notes)
    view = TopView()
    with contextlib.suppress(KeyboardInterrupt), _keys() as keyboard, Screen(out) as screen:
        while True:
            seen = take_snapshot()
            due = time.monotonic() + EVERY_S
            size = -1
            while (left := due - time.monotonic()) > 0 or size < 0:
                size = os.get_terminal_size(out.stream.fileno()).lines
                screen.show(lambda page, lines=size - 1, now=seen: draw(page, now, view, lines))  # type: ignore[misc]
                ready, _, _ = select.select([keyboard], [], [], max(0.0, min(left, 0.25)))
                if ready and not typed(os.read(keyboard, 64).decode(errors="replace"), view, seen):
                    return 0
    return 0
