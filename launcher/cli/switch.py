"""`launch switch`: the runtime that lives takes over another fleet; what both have alike is not touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.cli.coming import runtime_change, show_coming
from launcher.cli.findings import show_findings
from launcher.cli.fleet import UpRequest, adopt, compile_for, read_request, served_directory
from launcher.cli.installed import installed_here
from launcher.cli.reload import hand_over
from launcher.cli.reloaded import show_reloaded
from launcher.cli.running import fleets, nothing_runs
from launcher.cli.terminal import terminals
from launcher.compiler import compile_fleet, deployment_name
from launcher.errors import ConfigError, SuperviseError


def switch_fleet(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    *,
    fleet: str | None,
    dry_run: bool,
    as_json: bool,
    no_color: bool,
) -> int:
    """Show what differs, then hand it over. Raises LaunchError; then nothing has changed.

    The fleet keeps its name, and with it its state directory, logs and metrics: only what it runs is another.
    """
    out, err = terminals(no_color=no_color)
    state = _running(fleet)
    old = read_request(state)
    names = _named_alike(state.name, overrides, config_dirs)
    request = UpRequest(overrides=(*overrides, *names), config_dirs=tuple(str(d) for d in config_dirs), host=old.host)
    again = compile_for(state, request)
    show_findings(err, [finding for finding in again.findings if finding.severity != "note"])
    command = "" if as_json else "launch switch"
    changes = runtime_change(served_directory(state), again.rendered, command=command)
    if not as_json:
        show_coming(out, changes)
    if dry_run:
        if as_json:
            out.json({"schema": "launch.switch/v1", "deployment": state.name, "changes": changes})
        return 0
    result = hand_over(state, adopt(again, state, request))
    if as_json:
        out.json({"schema": "launch.reload/v1", "fleets": [result]})
    else:
        show_reloaded(out, result)
    return SuperviseError.exit_code if result.get("failed") else 0


def _running(fleet: str | None) -> Path:
    """The state directory of the fleet to switch. Raises SuperviseError: none runs; ConfigError: several do."""
    running = {status.deployment: path for path, status in fleets().items() if status.runtime_pid is not None}
    installed = [there.name for there in installed_here()]
    if installed and (not running or fleet in installed):
        message = f"{fleet or ', '.join(installed)} is installed, and systemd's units are not switched"
        note = "`launch install …` puts another plan in place, and restarts only what differs"
        raise ConfigError.of("config/usage", message, note)
    if not running:
        raise nothing_runs("nothing can be switched")
    name = fleet if fleet is not None or len(running) > 1 else next(iter(running))
    if name not in running:
        wrong = f"no running fleet is called {name}" if name else f"{len(running)} fleets run: which one?"
        notes = tuple(f"launch switch --fleet {known} …" for known in sorted(running))
        raise ConfigError.of("config/usage", wrong, *notes)
    return running[name]


def _named_alike(name: str, overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[str, ...]:
    """The overrides by which what was asked for is called as what runs. Raises LaunchError: it does not compile."""
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    compiled.require()
    fleet = compiled.plan.config
    if deployment_name(fleet) == name:
        return ()
    if name.startswith(f"{fleet.hardware.name}-"):
        return (f"profile.name={name.removeprefix(f'{fleet.hardware.name}-')}",)
    hardware, _, profile = name.partition("-")
    return (f"hardware.name={hardware}", f"profile.name={profile}")
