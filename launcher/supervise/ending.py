"""Reach or end a runtime from outside, also while it is just starting or ending. I/O; blocks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from launcher.base.procfs import is_suspended
from launcher.errors import Finding, SuperviseError, fault
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.offline import LOCK_NAME, runtime_holder
from launcher.supervise.process import signal_exactly

_PATIENCE_S = 2.0
"""Seconds that a runtime which holds its lock may take to open its control socket, or to release the lock."""
_PAUSE_S = 0.05
_SAY_AFTER_S = 2.0


def reach_runtime(state_dir: Path) -> ControlClient:
    """A client of the runtime of `state_dir`, waited for if it is just starting.

    Raises SuperviseError `supervise/no-answer` when no runtime lives (any more), or when it does not listen within 2 s.
    """
    patience = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ControlClient(state_dir)
        except NoRuntimeError:
            if runtime_holder(state_dir) is None or time.monotonic() > patience:
                raise SuperviseError([no_answer_finding(state_dir)]) from None
        time.sleep(_PAUSE_S)


def end_runtime(state_dir: Path, *, wait_s: float, report: Callable[[str], None]) -> None:
    """End the runtime of `state_dir` with all its servers, and return when its lock is free; at once if it is.

    It is asked over its control socket; if it holds the lock and does not listen for 2 s, it gets SIGTERM. One that is
    stopped by a signal gets SIGCONT first, without which it can react to neither.

    `report` gets a line of text for people when this takes long. Raises SuperviseError: `supervise/still-running` after
    `wait_s`, `supervise/lock-unnamed` when no runtime answers and the lock names no living process.
    """
    begun = time.monotonic()
    deaf_since = begun
    reported = signalled = False
    while (holder := runtime_holder(state_dir)) is not None:
        now = time.monotonic()
        if now - begun > wait_s:
            raise SuperviseError([_still_running(state_dir, holder.pid, wait_s)])
        if now - begun > _SAY_AFTER_S and not reported:
            report(f"waiting for the runtime of {state_dir.name} (pid {holder.pid}) to drain and end")
            reported = True
        if is_suspended(holder.pid):
            report(f"the runtime of {state_dir.name} (pid {holder.pid}) is stopped by a signal: it gets SIGCONT")
            signal_exactly(holder.pid, holder.start_ticks, signal.SIGCONT)
        try:
            with ControlClient(state_dir) as client:
                client.stop(wait_s=_SAY_AFTER_S)
            deaf_since = time.monotonic()
        except TimeoutError:
            deaf_since = time.monotonic()
        except NoRuntimeError:
            if time.monotonic() - deaf_since > _PATIENCE_S and not signalled:
                if holder.pid == 0:
                    raise SuperviseError([_unnamed(state_dir)]) from None
                report(f"the runtime of {state_dir.name} (pid {holder.pid}) does not answer: it gets SIGTERM")
                signalled = signal_exactly(holder.pid, holder.start_ticks, signal.SIGTERM)
        time.sleep(_PAUSE_S)


def no_answer_finding(state_dir: Path) -> Finding:
    """The finding for a command that could not reach its runtime."""
    holder = runtime_holder(state_dir)
    why = "it is just starting or ending"
    notes: tuple[str, ...] = ("`launch status` shows what runs; try again",)
    if holder is not None and is_suspended(holder.pid):
        why = "it is stopped by a signal (SIGSTOP)"
        notes = (f"kill -CONT {holder.pid} lets it go on", "`launch stop --all` ends it")
    message = f"the runtime of {state_dir.name} does not answer: {why}"
    return fault("supervise/no-answer", "", message, *notes)


def early_finding(deployment: str) -> Finding:
    """The finding for a start that was told to stop before the fleet was ready."""
    message = f"{deployment} was told to stop before it was ready; everything that had been started is stopped"
    return fault("supervise/stopped-early", "", message)


def _still_running(state_dir: Path, pid: int, wait_s: float) -> Finding:
    message = f"the runtime of {state_dir.name} (pid {pid}) was told to end and still runs after {wait_s:g} s"
    by_force = f"kill -9 {pid}, then `launch stop --all`, ends it by force"
    return fault("supervise/still-running", "", message, "`launch status` shows what it waits for", by_force)


def _unnamed(state_dir: Path) -> Finding:
    lock = state_dir / LOCK_NAME
    message = f"{lock} is held by a process that it does not name, and nobody answers"
    return fault("supervise/lock-unnamed", "", message, f"`fuser {lock}` shows who holds it")
