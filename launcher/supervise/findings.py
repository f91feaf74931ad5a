"""Findings of a running fleet: refused stops and reloads, failed processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.errors import Finding, SuperviseError, fault
from launcher.ir.live import FleetStatus
from launcher.supervise.runner import Runner

_TAIL_IN_FINDING = 20


def stopping_finding(deployment: str) -> Finding:
    """The finding for a change that comes while the fleet is stopping."""
    message = f"{deployment} is stopping: nothing is started or changed any more"
    return fault("supervise/stopping", "", message, "when it has ended, `launch up` starts it again")


def starting_finding(status: FleetStatus) -> Finding:
    """The finding for a reload that comes too early: both would start the same servers."""
    waiting = ", ".join(f"{p.name} ({p.state})" for p in status.processes if p.state not in ("ready", "sleeping"))
    message = f"{status.deployment} is still starting: {waiting or 'its hooks run'}"
    return fault("supervise/starting", "", message, "`launch status` shows when it is ready; reload then")


def front_finding(name: str, stopped: Sequence[str]) -> Finding:
    """The finding for a stop of the builtin front by its name."""
    beside = f"; {', '.join(stopped)} stopped" if stopped else ""
    message = f"{name} is the runtime's own front, and ends with it{beside}"
    notes = ("`launch stop --all` ends both", f"`launch reload {name}` has it read its routes and keys again")
    return fault("supervise/front-stays", f"services.{name}", message, *notes)


def state_moved_finding(deployment: str) -> Finding:
    """The finding for a reload that would move the state directory: locks, logs and sockets are open there."""
    message = f"the state directory of {deployment} changed: no reload moves it, and nothing was reloaded"
    return fault("supervise/state-moved", "runtime.state_dir", message, "`launch stop --all`, then `launch up`")


def failure_finding(runner: Runner) -> Finding:
    """The finding for a failed process, with the remedy and the end of its log as notes."""
    spec, event = runner.spec, runner.failed_event()
    lines = event.tail[-_TAIL_IN_FINDING:]
    notes = [event.remedy] if event.remedy else []
    if event.exit_code is not None:
        notes.append(f"exit code {event.exit_code}")
    if lines:
        log = runner.record.log_file if runner.record is not None else ""
        notes += [f"the end of {log or 'its journal'}:", *lines]
    return fault(event.code, f"{spec.unit.kind}s.{spec.name}", f"{spec.name}: {event.cause}", *notes)


def is_fatal(runner: Runner) -> bool:
    """Whether the failure of `runner` stops the fleet; a missing container engine never does."""
    missing_engine = runner.failure is not None and runner.failure.code == "supervise/container-engine-missing"
    return runner.spec.unit.fatal and not missing_engine


def refuse_none_started(runners: Iterable[Runner]) -> None:
    """Raise SuperviseError with the failure of every server, if all that may be started have failed."""
    servers = [r for r in runners if r.spec.unit.kind == "server" and r.spec.unit.start != "never"]
    if servers and all(r.life.state == "failed" for r in servers):
        raise SuperviseError([failure_finding(runner) for runner in servers])
