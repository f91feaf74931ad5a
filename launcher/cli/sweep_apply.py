"""`launch sweep --apply`: write recommended values into the user's own config, with the evidence above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.author import scalar
from launcher.author.edit import NotEditableError, set_value
from launcher.compiler import compile_fleet
from launcher.config import is_fleet_file
from launcher.errors import ConfigError, LaunchError
from launcher.files import ChangedMeanwhileError, folder_lock, replace_if_unchanged, writing
from launcher.ir.sweep import Recommendation

ServerPlace = tuple[Path, tuple[str, ...]]
"""A file, and the keys above a server's fields in it."""


def places_to_write(servers: Sequence[str], config_dirs: Sequence[Path]) -> dict[str, ServerPlace]:
    """Server → where its own fields are written. Raises ConfigError if nowhere, before anything is measured."""
    return {server: _place(server, config_dirs) for server in servers}


def _place(server: str, config_dirs: Sequence[Path]) -> ServerPlace:
    for path in config_dirs:
        if is_fleet_file(path):
            return path, ("servers", server)
        own = path / "server" / f"{server}.yaml"
        if own.is_file():
            return own, ()
    message = f"there is no fleet file and no server/{server}.yaml of yours to write into"
    note = "without --apply the recommendation is printed, with the override to type"
    raise ConfigError.of("sweep/not-applied", message, note)


def apply_all(
    recommended: Sequence[Recommendation],
    places: Mapping[str, ServerPlace],
    evidence: str,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
) -> dict[str, str]:
    """Write what is recommended for the servers of `places`, with the `evidence`: file → what was written into it."""
    done: dict[str, str] = {}
    for found in recommended:
        if found.server in places and found.settings and found.gain:
            why = f"{evidence}: {found.sentence.partition(': ')[2]}"
            path, written = apply(found, places[found.server], why, overrides, config_dirs)
            done[str(path)] = "; ".join(filter(None, (done.get(str(path)), written)))
    return done


def apply(
    found: Recommendation, place: ServerPlace, why: str, overrides: Sequence[str], config_dirs: Sequence[Path]
) -> tuple[Path, str]:
    """Write the settings; returns the file, and what was written. Raises ConfigError; then the file is unchanged."""
    path, above = place
    words = " ".join(f"servers.{found.server}.{field}={value}" for field, value in found.settings.items())
    try:
        with writing(path), folder_lock(path):
            before = path.read_bytes()
            text = before.decode()
            for field, value in found.settings.items():
                text = set_value(text, (*above, *field.split(".")), _yaml(value), why)
            replace_if_unchanged(path, before, text.encode())
            try:
                compile_fleet(overrides, config_dirs=config_dirs).require()
            except LaunchError as error:
                replace_if_unchanged(path, text.encode(), before)
                raise _refused(f"{path} would not compile: {error}", words) from None
    except (NotEditableError, UnicodeDecodeError, ChangedMeanwhileError) as error:
        why_not = "it was changed meanwhile" if isinstance(error, ChangedMeanwhileError) else str(error)
        raise _refused(f"{path}: {why_not}", words) from None
    return path, words


def _yaml(value: str) -> str:
    plain = value.replace(".", "", 1).isdigit() or value[:1] in "[{" or value in {"true", "false", "null"}
    return value if plain else scalar(value)


def _refused(message: str, words: str) -> ConfigError:
    note = f"write it by hand, or start with: {words}"
    return ConfigError.of("sweep/not-applied", message, note)
