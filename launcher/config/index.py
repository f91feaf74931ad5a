"""Which config files there are: group → options over several directories. I/O: lists directories.

Hydra's rule: groups are the union of all directories; a file of an earlier directory shadows the same
group and name in a later one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from launcher.errors import Finding, Location, fault

PRIMARY = "config"
"""Name of the primary config: `config.yaml` at the top of a config directory."""

MAX_DEPTH = 5
"""How deep groups nest (`server/gpu/…`); a symlink to a parent directory must not go on for ever."""


class ConfigIndex(msgspec.Struct, frozen=True):
    """`files`: config path (`server/frontdoor`) → file; `groups`: group → its options, sorted."""

    files: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...]
    fleet: str = ""
    """Config path of the file that holds a whole fleet, where one of the directories is such a file."""

    def options(self, group: str) -> tuple[str, ...]:
        """The options of `group`; none for an unknown one."""
        return self.groups.get(group, ())


def index_of(config_dirs: Sequence[Path], virtual: Sequence[str] = (), draft: str | None = None) -> ConfigIndex:
    """List `config_dirs` (first wins) and add the `virtual` config paths (`hardware/auto`).

    A file among them holds a whole fleet: an option of profile/. With a `draft` of it that file need not be there yet.

    Findings: `config/unreadable` for a directory that is missing, is a file, or may not be listed.
    """
    files: dict[str, str] = {}
    options: dict[str, set[str]] = {}
    findings = []
    fleet = ""
    for directory in config_dirs:
        if is_fleet_file(directory) or (draft is not None and not directory.is_dir()):
            fleet = f"profile/{fleet_name(directory)}"
            files.setdefault(fleet, str(directory))
            options.setdefault("profile", set()).add(fleet_name(directory))
            continue
        try:
            for path, file in _walk(str(directory), "", MAX_DEPTH):
                if file is None:
                    options.setdefault(path, set())
                    continue
                if file.endswith("/"):
                    findings.append(_directory(file.rstrip("/")))
                    continue
                if file.endswith(".yml"):
                    findings.append(_unread(file))
                    continue
                files.setdefault(path, file)
                options.setdefault(path.rpartition("/")[0], set()).add(path.rpartition("/")[2])
        except OSError as error:
            findings.append(unreadable(error.filename or str(directory), error))
    for path in virtual:
        group, _, option = path.rpartition("/")
        options.setdefault(group, set()).add(option)
    options.pop("", None)
    return ConfigIndex(
        files, {group: tuple(sorted(names)) for group, names in sorted(options.items())}, tuple(findings), fleet
    )


def is_fleet_file(path: Path) -> bool:
    """Whether what was given for a config directory is a file: a whole fleet in one."""
    return path.suffix in {".yaml", ".yml"} and path.is_file()


def fleet_name(path: Path) -> str:
    """What the fleet in the file `path` is called: after the file, or after the folder of a plain `launch.yaml`.

    In the user's own config folder, `…/.config/launch/launch.yaml`, that is `home`.
    """
    name = path.stem
    if name == "launch":
        name = path.absolute().parent.name
        name = "home" if name in {"launch", ""} else name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "fleet"


def _walk(directory: str, group: str, depth: int) -> Iterator[tuple[str, str | None]]:
    """(config path, file) of each YAML file below `directory`, and (group, None) of each subdirectory.

    A directory that is named like a file comes as one, with a slash at its end.
    """
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = entry.name
            if name.startswith((".", "__")):
                continue
            path = f"{group}/{name}" if group else name
            if entry.is_dir() and name.endswith((".yaml", ".yml")):
                yield path, f"{entry.path}/"
            elif entry.is_dir():
                yield path, None
                if depth > 1:
                    yield from _walk(entry.path, path, depth - 1)
            elif name.endswith((".yaml", ".yml")):
                yield path.removesuffix(".yaml"), entry.path


def _unread(file: str) -> Finding:
    return fault(
        "config/unreadable",
        "",
        f"{file} is not read: config files end in .yaml",
        f"rename it to {file.removesuffix('.yml')}.yaml",
        location=Location(file=file, line=1),
        severity="warning",
    )


def _directory(path: str) -> Finding:
    return fault(
        "config/unreadable",
        "",
        f"{path} is not read: it is a directory, and its name is that of a config file",
        "put a file in its place, or name a group without .yaml",
        location=Location(file=path, line=1),
        severity="warning",
    )


def unreadable(file: str, error: OSError | UnicodeDecodeError) -> Finding:
    """The finding for a file or directory that the system does not let us read, or that is not UTF-8."""
    if isinstance(error, UnicodeDecodeError):
        before = error.object[: error.start]
        start = before.rfind(b"\n") + 1
        location = Location(file=file, line=before.count(b"\n") + 1, column=error.start - start + 1)
        message = f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x}"
        note = "save the file as UTF-8"
    else:
        location = Location(file=file, line=1)
        message = f"cannot read {file}: {error.strerror or error}"
        note = "a config directory must be a readable directory with readable *.yaml files"
    return fault("config/unreadable", "", message, note, location=location)
