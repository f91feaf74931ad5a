"""Where each file of a deployment is installed, and which paths and units it may have, whoever made its bundle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from launcher.base.names import DEPLOYMENT, PROCESS, TAKEN_PREFIXES
from launcher.base.tree import FoundFile, Tree
from launcher.errors import ConfigError, Finding, fault
from launcher.ir.deployment import RECORDS, Deployment, RenderedFile
from launcher.ir.fleet import FleetManifest
from launcher.manifest import decode_fleet

UNIT_FOLDERS = {"system": "systemd", "user": "systemd-user"}
"""Scope → folder of the units in a deployment."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Folders of the machine, or of a user; `root` is put before all of them (an image, a test)."""

    scope: Literal["system", "user"] = "system"
    root: Path = Path("/")
    home: Path = Path("/root")
    """The user's home; used by scope `user` only."""

    def __post_init__(self) -> None:
        """Raises ValueError for relative paths."""
        if not self.root.is_absolute() or not self.home.is_absolute():
            raise ValueError("root and home are absolute paths")

    @property
    def tree(self) -> Tree:
        """The files below the root: everything that is read, written or removed goes through it."""
        return Tree(self.root)

    def _at(self, system: str, user: str) -> Path:
        path = Path(system) if self.scope == "system" else self.home / user
        return self.root / path.relative_to("/")

    @property
    def units(self) -> Path:
        """Folder of the unit files that an administrator installs."""
        return self._at("/etc/systemd/system", ".config/systemd/user")

    @property
    def quadlets(self) -> Path:
        """Folder of Quadlet files, from which podman's generator makes services."""
        return self._at("/etc/containers/systemd", ".config/containers/systemd")

    @property
    def polkit_rules(self) -> Path:
        """Folder of polkit's rules."""
        return self._at("/etc/polkit-1/rules.d", ".config/polkit-1/rules.d")

    @property
    def sysusers(self) -> Path:
        """Folder of the files from which `systemd-sysusers` creates users."""
        return self._at("/etc/sysusers.d", ".config/sysusers.d")

    def state(self, unit: str, deployment: str) -> Path:
        """State directory of the runtime that `unit` runs, with its control socket."""
        stem = unit.removesuffix(".service")
        return self._at(f"/var/lib/{stem}", ".local/state/launch-installed") / deployment

    def data(self, deployment: str) -> Path:
        """Folder of the manifest and routes of `deployment`."""
        return self._at("/etc", ".config") / "launch" / deployment

    @property
    def records(self) -> Path:
        """Folder of the ownership records, one per deployment."""
        return self._at(RECORDS["system"], RECORDS["user"])

    def checkpoints(self, deployment: str) -> Path:
        """Folder of the checkpoints of `deployment`."""
        return self.records.parent / "kept" / deployment


def placements(deployment: Deployment, layout: Layout) -> dict[Path, RenderedFile]:
    """Absolute path → file, for the files of `deployment` that are installed; scripts for people are not.

    Raises ConfigError for a name that leaves its folder.
    """
    if not DEPLOYMENT.fullmatch(deployment.name):
        raise ConfigError.of("install/foreign-name", f"{deployment.name!r} cannot name a deployment")
    folders = _folders(layout, deployment.name)
    placed: dict[Path, RenderedFile] = {}
    for file in deployment.files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in file.path:
            raise ConfigError.of("install/foreign-name", f"{file.path!r} is no path inside a deployment")
        folder = folders.get("" if len(path.parts) == 1 else path.parts[0])
        if folder is not None and len(path.parts) <= 2:
            placed[folder / path.name] = file
    return placed


def bundle_files(names: Iterable[str], layout: Layout, deployment: str) -> dict[str, FoundFile]:
    """The reverse of `placements`: path in the deployment → installed file, for those of `names` that exist.

    `names`: as in an ownership record. Raises OSError.
    """
    folders = {place: folder for folder, place in _folders(layout, deployment).items()}
    found = {}
    for name in sorted(names):
        path = layout.root / name[1:]
        file = layout.tree.read(path)
        if file is not None and path.parent in folders:
            found[str(PurePosixPath(folders[path.parent]) / path.name)] = file
    return found


def _folders(layout: Layout, deployment: str) -> dict[str, Path]:
    return {
        UNIT_FOLDERS[layout.scope]: layout.units,
        "polkit": layout.polkit_rules,
        "sysusers": layout.sysusers,
        "containers": layout.quadlets,
        "": layout.data(deployment),
    }


def is_unit(path: Path, layout: Layout) -> bool:
    """Whether `path` is a unit file, or a Quadlet file, of which podman makes a unit."""
    return path.parent in (layout.units, layout.quadlets)


_OURS = re.compile(r"(?P<prefix>[A-Za-z0-9_][A-Za-z0-9._+=]*)-+[A-Za-z0-9_][A-Za-z0-9_.+@=-]*")
_RUNG = re.compile(r"\.rung\d+\Z")
_VENDORS = {
    "system": (
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
        "/usr/local/lib/systemd/system",
        "/run/systemd/system",
    ),
    "user": ("/usr/lib/systemd/user", "/usr/local/lib/systemd/user"),
}
"""Folders of other packages' units, which a unit of the same name in /etc would replace."""


def foreign_path_reason(path: Path, layout: Layout, deployment: str) -> str | None:
    """Why `path`, as the installed machine names it, is no file of `deployment`; None if it is one."""
    folder, name = layout.root / path.parent.relative_to("/"), path.name
    stem, suffix = path.stem, path.suffix
    if folder == layout.data(deployment):
        return None if PROCESS.fullmatch(name) else "it is no name of a file of ours"
    kinds = {
        layout.units: (".service", ".target", ".slice"),
        layout.quadlets: (".container",),
        layout.polkit_rules: (".rules",),
        layout.sysusers: (".conf",),
    }
    if folder not in kinds or str(path) != f"{path.parent}/{name}" or ".." in path.parts:
        return "deployments have no files there"
    if suffix not in kinds[folder]:
        return f"files of ours end there with {' or '.join(kinds[folder])}"
    found = _OURS.fullmatch(stem.removeprefix("50-") if folder == layout.polkit_rules else stem)
    if found is None:
        return "units of ours are named PREFIX-NAME"
    return f"units of {found['prefix']}- are systemd's" if found["prefix"] in TAKEN_PREFIXES else None


def foreign_names(deployment: Deployment, paths: Iterable[Path], layout: Layout) -> Iterator[Finding]:
    """`install/foreign-name` for each of `paths` (as the machine names them) that `deployment` may not have."""
    manifest, services = manifest_of(deployment), None
    if manifest is not None:
        services = [deployment.name, *(s.name for s in manifest.servers), *(s.name for s in manifest.services)]
        services.sort(key=len, reverse=True)
    prefixes = set()
    for path in paths:
        why = foreign_path_reason(path, layout, deployment.name)
        if why is None and layout.root / path.parent.relative_to("/") == layout.units:
            vendor = next((v for v in _VENDORS[layout.scope] if _is_there(Path(v) / path.name, layout)), None)
            if vendor is not None:
                why = f"it would replace the one in {vendor}"
            elif services is not None and path.suffix == ".service":
                stem = _RUNG.sub("", path.stem)
                prefix = next((stem.removesuffix(f"-{s}") for s in services if stem.endswith(f"-{s}")), None)
                prefixes.add(prefix)
                if prefix is None or len(prefixes) > 1:
                    why = "it is no server's, no service's and not the runtime's of this deployment"
        if why is not None:
            message = f"{deployment.name} cannot have {path}: {why}"
            note = "`launch render` writes no such file: whoever made this bundle wants more than to run servers"
            yield fault("install/foreign-name", "", message, note)


def manifest_of(deployment: Deployment) -> FleetManifest | None:
    """The manifest among the files of `deployment`; None if it cannot be read."""
    text = next((file.text for file in deployment.files if file.path == "fleet.json"), "")
    try:
        return decode_fleet(text.encode())
    except ConfigError:
        return None


def _is_there(path: Path, layout: Layout) -> bool:
    try:
        return layout.tree.read(layout.root / path.relative_to("/")) is not None
    except OSError:
        return False
