"""Completion of overrides and of running servers' names. A failure completes nothing: it must never print."""

from __future__ import annotations

import os
import shlex
import typing
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launcher.cli.arguments import complete_override
from launcher.cli.onefile import found_fleet_file
from launcher.errors import LaunchError
from launcher.ir.config import ServerConfig


def complete_overrides(incomplete: str) -> list[str]:
    """Groups with their options, and the fields of the servers, with their choices."""
    from launcher import config
    from launcher.files import packaged_dir

    args, typed = words_before(os.environ, incomplete)
    try:
        groups = config.groups([*_paths_behind(args, "--config-dir"), packaged_dir("conf")])
    except (LaunchError, OSError):
        return []
    options = {group: list(names) for group, names in groups.items()}
    options.setdefault("hardware", []).append("auto")
    keys = {"include_warm": "[]", "runtime.front.port": "8000"}
    fields, defaults = _server_fields(groups), _defaults()
    for name in (*groups.get("server", ()), *_fleet_servers(args)):
        options |= {f"servers.{name}.{field}": choices for field, choices in fields.items() if choices}
        keys |= {f"servers.{name}.{field}": defaults[field] for field, choices in fields.items() if not choices}
    return complete_override(args, typed, options, keys)


def _server_fields(groups: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Field of a server → its choices, if they are a short list."""
    hints = typing.get_type_hints(ServerConfig)
    fields: dict[str, list[str]] = {}
    for field in msgspec.structs.fields(ServerConfig):
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        literals = [
            value for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)
        ]
        choices = ["true", "false"] if bool in kinds else [str(value) for value in literals]
        fields[field.name] = list(groups.get(field.name, choices))
    return fields


def _defaults() -> dict[str, str]:
    fields = msgspec.structs.fields(ServerConfig)
    plain = {f.name: None if f.default is msgspec.NODEFAULT else f.default for f in fields}
    return {name: msgspec.json.encode(value).decode() for name, value in plain.items()}


def complete_fleet_servers(incomplete: str) -> list[str]:
    """Names of the servers in the fleet file."""
    args, typed = words_before(os.environ, incomplete)
    return sorted(name for name in _fleet_servers(args) if name.startswith(typed))


def _fleet_servers(args: list[str]) -> list[str]:
    from launcher.author.edit import NotEditableError, servers_of

    path = next(iter(_paths_behind(args, "-f", "--file")), None) or found_fleet_file()
    try:
        return [str(name) for name in servers_of(path.read_text(encoding="utf-8"))] if path else []
    except (OSError, UnicodeDecodeError, NotEditableError):
        return []


def complete_deployed(incomplete: str) -> list[str]:
    """Names of servers and services of running fleets."""
    from launcher.cli.running import running_names

    args, typed = words_before(os.environ, incomplete)
    try:
        return sorted(n for n in running_names() if n.startswith(typed) and n not in args)
    except (LaunchError, OSError):
        return []


def complete_checkpoints(incomplete: str) -> list[str]:
    """The actions of `checkpoint`, then the names of checkpoints."""
    from launcher.cli.checkpoint import ACTIONS
    from launcher.files.checkpoints import checkpoint_names
    from launcher.files.state import deployment_state_dir, known_deployments

    args, typed = words_before(os.environ, incomplete)
    words = [word for word in args if not word.startswith("-")]
    if words[:1] != ["checkpoint"] or len(words) == 1:
        return [action for action in ACTIONS if action.startswith(typed)]
    if words[1] in ("create", "list"):
        return []
    names = {name for known in known_deployments() for name in checkpoint_names(deployment_state_dir(known))}
    return sorted(name for name in names if name.startswith(typed))


def complete_codes(incomplete: str) -> list[str]:
    """Codes of findings."""
    from launcher.cli.explain import explanations

    return [page.code for page in explanations() if page.code.startswith(incomplete)]


def words_before(env: Mapping[str, str], incomplete: str) -> tuple[list[str], str]:
    """The words before the one being typed, and that word, from what the shell passed.

    Bash breaks words at `=` and passes all of them in COMP_WORDS, also a lone `=` at the end, which Click drops.
    """
    if "COMP_WORDS" in env and "COMP_CWORD" in env:
        words = env["COMP_WORDS"].split("\n") if "\n" in env["COMP_WORDS"] else env["COMP_WORDS"].split()
        at = int(env["COMP_CWORD"])
        return words[1:at], words[at] if at < len(words) else ""
    try:
        typed = shlex.split(env.get("_TYPER_COMPLETE_ARGS", ""))
    except ValueError:
        typed = []
    before = typed[1:-1] if incomplete and typed[-1:] == [incomplete] else typed[1:]
    return before, incomplete


def _paths_behind(args: list[str], *options: str) -> list[Path]:
    return [Path(args[i + 1]) for i, word in enumerate(args[:-1]) if word in options]
