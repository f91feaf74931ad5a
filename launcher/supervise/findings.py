"""Why a fleet, or one of its processes, does not go on, as findings."""

from __future__ import annotations

from launcher.errors import Finding
from launcher.supervise.runner import Runner

_TAIL_IN_FINDING = 20


def stopping_finding(deployment: str) -> Finding:
    """Why nothing is taken over any more."""
    return Finding(
        code="supervise/stopping",
        severity="error",
        key="",
        message=f"{deployment} is stopping: nothing is started or changed any more",
        notes=("when it has ended, `launch up` starts it again",),
    )


def failure_finding(runner: Runner) -> Finding:
    """Why a process failed, with the remedy and the end of its log as notes."""
    spec, event = runner.spec, runner.failed_event()
    lines = event.tail[-_TAIL_IN_FINDING:]
    notes = [event.remedy] if event.remedy else []
    if event.exit_code is not None:
        notes.append(f"exit code {event.exit_code}")
    if lines:
        notes += [f"the end of {runner.log_file}:", *lines]
    return Finding(
        code=event.code,
        severity="error",
        key=f"{spec.kind}s.{spec.name}",
        message=f"{spec.name}: {event.cause}",
        notes=tuple(notes),
    )
