"""A deployment has one runtime, under `launch up` or under systemd: who comes second is told. I/O."""

from __future__ import annotations

from pathlib import Path

from launcher.cli.installed import installed_here
from launcher.errors import Finding, HostError, error_finding
from launcher.install import Layout


def require_not_installed(deployment: str) -> None:
    """For `launch up`: raises HostError when `deployment` is installed, whether it runs now or at the next boot."""
    for installed in installed_here([]):
        if installed.name == deployment:
            manager = "systemd --user" if installed.layout.scope == "user" else "systemd"
            user = " --user" if installed.layout.scope == "user" else ""
            notes = (
                "`launch reload` starts it, and takes over what changed",
                f"`launch uninstall{user} {deployment}` takes it away; then `launch up` runs it",
            )
            raise HostError([_twice(f"{deployment} is installed: {manager} runs it", *notes)])


def require_not_up(deployment: str, layout: Layout) -> None:
    """For `launch install`: raises HostError when `deployment` runs here under `launch up`."""
    from launcher.cli.running import fleets

    if layout.root != Path("/"):
        return
    for status in fleets([]).values():
        if status.deployment == deployment:
            runtime = f", its runtime is pid {status.runtime_pid}" if status.runtime_pid else ""
            note = "`launch stop --all` ends it; then `launch install` puts it in systemd's hands"
            raise HostError([_twice(f"{deployment} runs under `launch up`{runtime}", note)])


def _twice(message: str, *notes: str) -> Finding:
    """The finding."""
    return error_finding("supervise/already-running", message, *notes)
