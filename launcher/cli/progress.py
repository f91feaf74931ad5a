"""Runtime events for people: live lines on a terminal, one plain line per event in a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from launcher.base.addresses import port_or_path
from launcher.cli.findings import printable
from launcher.cli.terminal import Terminal
from launcher.supervise import events

_TICK_S = 0.2
_TAIL_LINES = 12


def _moved(event: events.FleetReloaded) -> list[str]:
    verbs = ("started", "restarted", "stopped")
    return [f"  {verb}: {', '.join(names)}" for verb in verbs if (names := getattr(event, verb))]


def _ready(event: events.FleetReady) -> list[str]:
    failed = f", {len(event.failed)} failed: {', '.join(event.failed)}" if event.failed else ""
    return [f"ready in {event.seconds:.2f} s: {len(event.ready)} running{failed}"]


def _process(pid: int) -> str:
    """`, pid N`; "" for a pod, which has no process on this machine."""
    return f", pid {pid}" if pid else ""


def _starting(event: events.ServerStarting) -> list[str]:
    log = f", log {event.log_file}" if event.log_file else ""
    return [f"  {event.name}: started{_process(event.pid)}, {port_or_path(event.socket, event.port)}{log}"]


def _slow(event: events.ServerSlow) -> list[str]:
    expected = f", {event.expected_s:.0f} s were expected for reading it" if event.expected_s is not None else ""
    return [f"! {event.name} still loads after {event.seconds:.0f} s{expected}; it gets on, and is waited for"]


_TEXTS: dict[type, Callable[[Any], list[str]]] = {
    events.RuntimeStarted: lambda e: [f"starting {e.deployment}: {len(e.processes)} to start"],
    events.ServerStarting: _starting,
    events.ServerSlow: _slow,
    events.ServerReady: lambda e: [f"✓ {e.name} ready in {e.seconds:.2f} s"],
    events.ServerAdopted: lambda e: [f"✓ {e.name} was running already{_process(e.pid)}"],
    events.Swapped: lambda e: [f"✓ {e.name} instead of {', '.join(e.instead_of)} in {e.seconds:.2f} s"],
    events.RoomMade: lambda e: [f"  {', '.join(e.going)} must go for {e.name}"],
    events.SlotsRestored: lambda e: [f"  {e.name}: {e.tokens} tokens of {e.slots} slots are back"],
    events.RungTaken: lambda e: [f"! {e.name}: {e.why}; now {e.rung or 'as planned'}"],
    events.ServerStopping: lambda e: [f"  {e.name}: stopping ({e.why})"],
    events.ServerStopped: lambda _: [],
    events.HookDone: lambda e: [f"! {e.name}: {e.error}" if e.error else f"✓ {e.name} done in {e.seconds:.2f} s"],
    events.StateIgnored: lambda e: [f"! {e.path} was not trusted: {e.reason}"],
    events.FleetReady: _ready,
    events.FleetFailed: lambda _: [],
    events.FleetReloaded: _moved,
    events.Stopping: lambda e: [f"stopping ({e.reason})"],
    events.Stopped: lambda _: ["stopped"],
}


class ProgressView:
    """Shows events as they come. While servers start on a terminal, their elapsed times are redrawn."""

    def __init__(self, terminal: Terminal, *, verbose: bool = False) -> None:
        """`terminal` is stderr: stdout carries answers."""
        self._terminal = terminal
        self._verbose = verbose
        self._starting: dict[str, float] = {}
        self._drawn = 0
        self._lock = threading.Lock()
        self._ticker: threading.Thread | None = None

    def __call__(self, event: events.AnyEvent) -> None:
        """Takes one event."""
        with self._lock:
            self._erase()
            self._track(event)
            for line in self._lines(event):
                self._terminal.line(line)
            self._draw()
        if self._starting and self._terminal.interactive and self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, daemon=True, name="progress")
            self._ticker.start()

    def finish(self) -> None:
        """Take the live line back: nobody waits any more."""
        with self._lock:
            self._erase()
            self._starting.clear()

    def _track(self, event: events.AnyEvent) -> None:
        match event:
            case events.ServerStarting(name=name):
                self._starting[name] = time.monotonic()
            case events.ServerReady(name=name) | events.ServerFailed(name=name) | events.ServerStopped(name=name):
                self._starting.pop(name, None)
            case events.FleetReady() | events.FleetFailed() | events.Stopping() | events.Stopped():
                self._starting.clear()

    def _lines(self, event: events.AnyEvent) -> list[str]:
        """What an event says; empty for those that only move the live lines."""
        if isinstance(event, events.ServerFailed):
            return self._failure(event)
        if isinstance(event, events.ServerStarting) and self._terminal.interactive and not self._verbose:
            return []
        if isinstance(event, events.ServerStopping) and not self._verbose:
            return []
        style, marks = self._terminal.style, {"✓": "green", "!": "yellow"}
        lines = [printable(line) for line in _TEXTS[type(event)](event)]
        if isinstance(event, events.FleetReady):
            return [style(line, "bold") for line in lines]
        return [f"  {style(line[0], marks[line[0]])}{line[1:]}" if line[0] in marks else line for line in lines]

    def _failure(self, event: events.ServerFailed) -> list[str]:
        style = self._terminal.style
        again = f"; trying again in {event.retry_s:.1f} s" if event.retry_s is not None else ""
        lines = [f"  {style('✗', 'red')} {event.name}: {printable(event.cause)}{again}"]
        if event.remedy:
            lines.append(f"    = {printable(event.remedy)}")
        lines += [style(f"    | {printable(line.expandtabs())}", "dim") for line in event.tail[-_TAIL_LINES:]]
        return lines

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                self._erase()
                if not self._starting:
                    self._ticker = None
                    return
                self._draw()

    def _erase(self) -> None:
        if self._drawn:
            self._terminal.stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._terminal.interactive or not self._starting:
            return
        now = time.monotonic()
        shown = (f"{name} {now - since:.0f} s" for name, since in self._starting.items())
        text = f"  … {', '.join(shown)}"
        self._terminal.line(self._terminal.style(text[: self._terminal.width - 1], "dim"))
        self._drawn = 1
