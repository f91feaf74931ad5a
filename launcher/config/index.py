"""The config files that exist: group → options over several directories. I/O: lists directories.

Hydra's rule: groups are the union of all directories; a file of an earlier directory shadows the same group and name in
a later one.
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
"""Depth of nested groups (`server/gpu/…`); a symlink to a parent directory must not recurse for ever."""

SUFFIXES = (".yaml", ".yml")

ENTRY_GROUPS = {
    "server": "servers",
    "service": "services",
    "upstream": "upstreams",
    "model": "models",
    "quantization": "quantizations",
    "tier": "tiers",
    "hook": "hooks",
    "engine": "engines",
}
"""Groups whose every file is one entry of a map: a file without a header lands at `<map>.<file name>`."""

DEFAULT_ENGINE = "engines.default"
"""Key for engine/ files without a header: choosing an engine chooses the servers' default."""

CATALOGUE_GROUPS = ("model", "quantization", "tier")
"""Groups that are always loaded whole: entries do nothing until something refers to them."""


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

    A file among them holds a whole fleet: an option of profile/, whatever a directory has of that name; of several the
    last. With a `draft` of it that file need not be there yet.

    Findings: `config/unreadable` for a directory that is missing, is a file, or may not be listed.
    """
    files: dict[str, str] = {}
    options: dict[str, set[str]] = {}
    findings = []
    fleet = ""
    for directory in config_dirs:
        if is_fleet_file(directory) or (draft is not None and not directory.is_dir()):
            if fleet:
                message = f"{files[fleet]} is not read: it is a whole fleet, and so is {directory}"
                note, at = "name one of both with --config-dir", Location(file=files[fleet], line=1)
                findings.append(fault("config/unreadable", "", message, note, location=at, severity="warning"))
            fleet = f"profile/{fleet_name(directory)}"
            files[fleet] = str(directory)
            options.setdefault("profile", set()).add(fleet_name(directory))
            continue
        try:
            for path, entry in _walk(str(directory), "", MAX_DEPTH):
                misplaced = _misplaced(entry)
                if misplaced is not None:
                    findings.append(misplaced)
                elif entry.is_dir():
                    options.setdefault(path, set())
                else:
                    files.setdefault(path, entry.path)
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
    return path.suffix in SUFFIXES and path.is_file()


def fleet_name(path: Path) -> str:
    """The name of the fleet in the file `path`: the file's, or its folder's for a plain `launch.yaml`.

    In the user's own config folder, `…/.config/launch/launch.yaml`, that is `home`.
    """
    name = path.stem
    if name == "launch":
        name = path.absolute().parent.name
        name = "home" if name in {"launch", ""} else name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "fleet"


def _walk(directory: str, group: str, depth: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Config path and entry of everything below `directory` that is a directory or named as a YAML file."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = entry.name
            is_named = name.endswith(SUFFIXES)
            if name.startswith((".", "__")) or not (is_named or entry.is_dir()):
                continue
            path = f"{group}/{name}" if group else name
            yield path.removesuffix(".yaml"), entry
            if depth > 1 and not is_named:
                yield from _walk(entry.path, path, depth - 1)


def _misplaced(entry: os.DirEntry[str]) -> Finding | None:
    """The warning for what is named as a config file and is not read: a directory, or a file that ends in .yml."""
    at = Location(file=entry.path, line=1)
    if entry.is_dir() and entry.name.endswith(SUFFIXES):
        message = f"{entry.path} is not read: it is a directory, and its name is that of a config file"
        note = "put a file in its place, or name a group without .yaml"
    elif entry.name.endswith(".yml"):
        message = f"{entry.path} is not read: config files end in .yaml"
        note = f"rename it to {entry.path.removesuffix('.yml')}.yaml"
    else:
        return None
    return fault("config/unreadable", "", message, note, location=at, severity="warning")


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
