"""The deployment whose checkpoints are meant, of `launch up` or installed, and its compiled files. I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launcher.cli.fleet import DEPLOYMENT_NAME, served_directory, stored_request
from launcher.cli.installed import fleet_status, installed_here
from launcher.cli.running import fleets
from launcher.errors import ConfigError, SuperviseError
from launcher.files import owned_files
from launcher.files.checkpoints import checkpoint_names
from launcher.files.state import deployment_state_dir, known_deployments
from launcher.install import Installed, bundle_files, file_drift
from launcher.ir.live import FleetStatus
from launcher.supervise import runtime_holder


class CheckpointSource(NamedTuple):
    """A deployment. `kept`: directory of its checkpoints; `state`: its runtime's; `installed`: set if systemd runs it.

    Checkpoints of an installed deployment are root's and lie beside the install records: the state directory is the
    unprivileged runtime's, which could otherwise have root install what it likes.
    """

    kept: Path
    state: Path
    installed: Installed | None = None

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.state.name

    def __str__(self) -> str:
        """The name, with a mark if it is installed."""
        return self.name if self.installed is None else f"{self.name} (installed)"

    @property
    def runs(self) -> bool:
        """Whether a runtime serves it now."""
        if self.installed is None:
            return runtime_holder(self.state) is not None
        return any(self.installed.units[c.service].pid for c in self.installed.components if c.name == self.name)

    def status(self) -> FleetStatus | None:
        """The status of all processes; None if nothing runs of a fleet of `launch up`."""
        return fleets().get(self.state) if self.installed is None else fleet_status(self.installed)

    def request(self) -> dict[str, Any] | None:
        """The stored request of `up`, or the source of an installed deployment; None if it cannot be read."""
        request = self.installed.record.source if self.installed is not None else stored_request(self.state)
        return None if isinstance(request, Exception) else msgspec.to_builtins(request)

    def files(self) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """Files of the compiled deployment (path → bytes), and which are programs; both empty if there is none.

        Raises SuperviseError when an installed file is not what was installed.
        """
        if self.installed is None:
            return _tree(served_directory(self.state))
        drift = file_drift(self.installed)
        if drift:
            message = f"{self.name} is not as it was installed: {drift[0]}"
            note = "`launch status` shows it, `launch reload` mends it"
            raise SuperviseError.of("checkpoint/not-what-runs", message, note)
        found = bundle_files(self.installed.record.files, self.installed.layout, self.name)
        return {path: file.data for path, file in found.items()}, tuple(p for p, f in found.items() if f.mode & 0o100)


def subjects() -> list[CheckpointSource]:
    """Every deployment that was brought up here, or is installed."""
    states = [deployment_state_dir(name) for name in known_deployments()]
    return [
        *(CheckpointSource(state, state) for state in states),
        *(CheckpointSource(i.layout.checkpoints(i.name), i.state_dir, i) for i in installed_here([])),
    ]


def subject_of(deployment: str | None, checkpoint: str | None) -> CheckpointSource:
    """The deployment meant: named, the one that has this checkpoint, the one that runs, or the only one.

    If an installed one and one of `launch up` have the same name, the installed one is meant. Raises ConfigError if it
    is not clear which.
    """
    known = subjects()
    if deployment is not None:
        names = ", ".join(sorted({s.name for s in known}))
        known = [s for s in known if s.name == deployment]
        if not known:
            message = f"there is no deployment {deployment}"
            raise ConfigError.of("checkpoint/unknown-deployment", message, f"known: {names or 'none'}")
    having = [s for s in known if checkpoint is not None and checkpoint in checkpoint_names(s.kept)]
    there = [s for s in known if s.installed is not None or (s.state / DEPLOYMENT_NAME).is_dir()]
    named = known if deployment is not None else []
    for choice in (having, [s for s in known if s.runs], there, named):
        if len({s.name for s in choice}) > 1:
            message = f"several deployments are possible: {', '.join(map(str, choice))}"
            raise ConfigError.of("checkpoint/which-deployment", message, "name one: --deployment NAME")
        if choice:
            return choice[-1]
    message = "no fleet runs, and none was ever brought up here"
    raise ConfigError.of("checkpoint/nothing-there", message, "launch up …")


def _tree(directory: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    files: dict[str, bytes] = {}
    programs = []
    for name in sorted(owned_files(directory)) or ("fleet.json", "routes.json"):
        path = directory / name
        if path.is_file() and not path.is_symlink():
            files[name] = path.read_bytes()
            if path.stat().st_mode & 0o100:
                programs.append(name)
    return files, tuple(programs)
