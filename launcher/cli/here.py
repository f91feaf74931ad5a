"""Every fleet that is known here, of `launch up` and installed: where its state lies, what it says now. I/O."""

from __future__ import annotations

from pathlib import Path

from launcher.cli.installed import fleet_status, installed_here
from launcher.cli.running import fleets
from launcher.errors import Finding, HostError
from launcher.files import cannot_read, deployment_state_dir, known_deployments
from launcher.ir.live import FleetStatus


def state_dirs(problems: list[Finding] | None = None) -> list[tuple[str, Path]]:
    """Name and state directory of each fleet that ever ran here, and of each that is installed.

    An installed one's is its runtime's alone: for who may not look into it, it is a finding in `problems`, or without
    them a HostError. Raises HostError too where the directory above those of `launch up` cannot be read.
    """
    found = [(name, deployment_state_dir(name)) for name in known_deployments()]
    for installed in installed_here(problems):
        directory = installed.state_dir
        try:
            known = directory.is_dir()
        except OSError as error:
            note = f"what the runtime of {installed.name} keeps is for root and itself: sudo launch …"
            finding = cannot_read(directory, error.strerror or str(error), note)
            if problems is None:
                raise HostError([finding]) from None
            problems.append(finding)
        else:
            found += [(installed.name, directory)] if known else []
    return found


def all_fleets() -> dict[Path, FleetStatus]:
    """Every fleet of `launch up` that lives, and every installed one, by the directory where its runtime is asked."""
    return fleets() | {installed.state_dir: fleet_status(installed) for installed in installed_here()}
