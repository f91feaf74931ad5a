"""Find the fleet file: the one that was named, `./launch.yaml`, or the user's own. I/O."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.arguments import is_override
from launcher.errors import ConfigError

FLEET_FILE = "launch.yaml"


def found_fleet_file() -> Path | None:
    """The fleet file if none is named: `./launch.yaml`, else the one in the user's config folder; None: neither."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    places = (Path(FLEET_FILE), Path(base, "launch", FLEET_FILE))
    return next((path.absolute() for path in places if path.is_file()), None)


def shown_path(path: Path) -> str:
    """A path relative to the current directory if it lies below it, else as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def words_for(config_dirs: Sequence[Path]) -> list[str]:
    """The options that name fleet files and config directories, as one would type them from here."""
    return [word for path in config_dirs for word in ("-f" if path.is_file() else "--config-dir", shown_path(path))]


def switch_command(overrides: Sequence[str], config_dirs: Sequence[Path]) -> str:
    """The `launch switch` that makes what runs the fleet of `overrides` and `config_dirs`."""
    found = found_fleet_file()
    words = [] if found is not None and list(config_dirs) == [found] else words_for(config_dirs)
    return shlex.join(["launch", "switch", *words, *overrides])


def fleet_file(given: Path | None, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Path | None:
    """The file to compile: `given`, or the one that is found if no profile and no config directory is named.

    Raises ConfigError if `given` does not exist, or a profile is named beside it.
    """
    profile = next((word for word in overrides if is_override(word) and word.startswith("profile=")), None)
    if given is None:
        return None if profile or config_dirs else found_fleet_file()
    path = given / FLEET_FILE if given.is_dir() else given
    if not path.is_file():
        note = "`launch init` writes a launch.yaml for the models of this machine"
        raise ConfigError.of("config/no-fleet-file", f"there is no file {path}", note)
    found = new_fleet_file(path)
    if profile:
        message = f"{path} is a whole fleet, and so is {profile!r}: name one of them"
        note = "a fleet file brings parts of others by a `defaults:` list of its own"
        raise ConfigError.of("config/no-fleet-file", message, note, key="profile")
    return found


def new_fleet_file(given: Path | None) -> Path:
    """Path of a fleet file to be written. Raises ConfigError for a name that would not be read as one."""
    path = given or Path(FLEET_FILE)
    if path.suffix not in {".yaml", ".yml"}:
        note = "other formats are translated: `launch import FILE`"
        raise ConfigError.of("config/no-fleet-file", f"{path} does not end in .yaml", note)
    return path.absolute()
