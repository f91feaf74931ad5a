"""Where each file of a deployment goes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from launcher.ir.deployment import RECORDS, Deployment, RenderedFile

UNIT_FOLDERS = {"system": "systemd", "user": "systemd-user"}
"""Folder of the units in a deployment, by scope."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's folders, or a user's; `root` is put before them all (an image, a test)."""

    scope: Literal["system", "user"] = "system"
    root: Path = Path("/")
    home: Path = Path("/root")
    """The user's home; only scope `user` looks at it."""

    def __post_init__(self) -> None:
        """ValueError on relative paths."""
        if not self.root.is_absolute() or not self.home.is_absolute():
            raise ValueError("root and home are absolute paths")

    def _at(self, system: str, user: str) -> Path:
        """`system`, or `user` below the home, below the root."""
        path = Path(system) if self.scope == "system" else self.home / user
        return self.root / path.relative_to("/")

    @property
    def units(self) -> Path:
        """Unit files that an administrator installs."""
        return self._at("/etc/systemd/system", ".config/systemd/user")

    @property
    def quadlets(self) -> Path:
        """Quadlet files, of which podman's generator makes services."""
        return self._at("/etc/containers/systemd", ".config/containers/systemd")

    def libexec(self, deployment: str) -> Path:
        """Programs that units of `deployment` run."""
        return self._at("/usr/local/libexec", ".local/libexec") / "launch" / deployment

    def data(self, deployment: str) -> Path:
        """Manifest and routes of `deployment`."""
        return self._at("/etc", ".config") / "launch" / deployment

    def run(self, deployment: str) -> Path:
        """Whose turn it is in exclusive groups of `deployment`, while the machine is up."""
        return self.root / "run/launch" / deployment

    @property
    def records(self) -> Path:
        """Ownership records, one a deployment."""
        return self._at(RECORDS["system"], RECORDS["user"])


def placements(deployment: Deployment, layout: Layout) -> dict[Path, RenderedFile]:
    """Absolute path → file, for the files of `deployment` that are installed; scripts for people are not.

    ValueError for a path that leaves its folder.
    """
    folders = {
        UNIT_FOLDERS[layout.scope]: layout.units,
        "libexec": layout.libexec(deployment.name),
        "containers": layout.quadlets,
        "": layout.data(deployment.name),
    }
    placed: dict[Path, RenderedFile] = {}
    for file in deployment.files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"not a path inside a deployment: {file.path!r}")
        folder = folders.get("" if len(path.parts) == 1 else path.parts[0])
        if folder is not None and len(path.parts) <= 2:
            placed[folder / path.name] = file
    return placed


def is_unit(path: Path, layout: Layout) -> bool:
    """Whether `path` is a unit file, or one that becomes a unit."""
    return path.parent in (layout.units, layout.quadlets)
