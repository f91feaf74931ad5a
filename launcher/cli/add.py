"""`launch add` and `launch remove`: add servers to the fleet file, or remove one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher import author, hardware
from launcher.author.edit import NotEditableError, servers_of
from launcher.cli import init
from launcher.cli.findings import show_findings
from launcher.cli.hub import download
from launcher.cli.joining import Joined, add_fitting
from launcher.cli.onefile import fleet_file, new_fleet_file, shown_path
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compile_fleet
from launcher.discover import plain_path
from launcher.errors import CatalogError, ConfigError, Finding, LaunchError, PlanError
from launcher.files import ChangedMeanwhileError, folder_lock, replace_if_unchanged
from launcher.files.packaged import fleet_schema_path


def add(
    what: Sequence[str],
    *,
    file: Path | None,
    name: str | None,
    roles: Sequence[str],
    faces: Sequence[str] = (),
    mates: Sequence[str] = (),
    dry_run: bool,
) -> int:
    """Add the models in files, folders or repositories. Raises LaunchError; then the fleet file is unchanged.

    `mates`: servers that a model takes turns with, whatever the file says of them.
    """
    _, err = terminals()
    if not all(word.strip() for word in (*roles, *([] if name is None else [name]))):
        raise _usage(f"--{'role' if name is None or name.strip() else 'name'}: a name has letters")
    more = Wishes(roles=tuple(roles), faces=dict(map(_face, faces)), mates=tuple(mates))
    paths = [path for word in what for path in _local_paths(word, err)]
    target = fleet_file(file, (), ()) if file is None or file.exists() else None
    target = target or new_fleet_file(file)
    with folder_lock(target):
        return _add(what, paths, target, name, more, dry_run=dry_run)


def _add(
    what: Sequence[str], paths: Sequence[Path], target: Path, name: str | None, more: Wishes, *, dry_run: bool
) -> int:
    """Add the models at `paths`; the caller holds the lock of the fleet file."""
    out, err = terminals()
    text = _text_of(target) if target.exists() else None
    strangers = set(more.mates) - set(_servers(text or "", target))
    if strangers:
        raise _usage(f"{shown_path(target)} has no server {min(strangers)}")
    found = _all_wanted(paths, err)
    new = [c for c in found if text is None or c.path not in _paths(text, target)]
    if not new:
        there = _paths(text or "", target)
        out.line(f"{shown_path(target)} has {', '.join(there[c.path] for c in found[:3])} already: nothing is changed")
        return 0
    if len(new) > 1 and (name is not None or more.faces):
        option = "--face" if name is None else "--name"
        raise _usage(f"{option} is for one model, and {' '.join(what)} has {len(new)}")
    if name is not None and name in _names(text or ""):
        raise _usage(f"--name {name}: {shown_path(target)} has that name already")
    if name is not None:
        new = [msgspec.structs.replace(new[0], name=name)]
    longer = _new_text(new, target, more, out) if text is None else _extended_text(text, new, target, more)
    if dry_run:
        out.write(longer)
        return 0
    _write(target, text, longer)
    out.line(f"wrote {shown_path(target)}; `launch plan` shows it, `launch` or `launch reload` starts it")
    return 0


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the options ask for: aliases, faces with their request values, and servers to take turns with."""

    roles: tuple[str, ...]
    faces: dict[str, dict[str, Any]]
    mates: tuple[str, ...]


def _face(words: str) -> tuple[str, dict[str, Any]]:
    """One face from `NAME,KEY=VALUE…`; a dotted key goes deeper, values are YAML. Raises ConfigError."""
    name, *pairs = words.split(",")
    values: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not all((*parents, last)):
            raise _usage(f"--face {words}: {pair!r} is not KEY=VALUE")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise _usage(f"--face {words}: {parent} is a value already")
        try:
            place[last] = yaml.safe_load(text)
            author.flow(place[last])
        except (yaml.YAMLError, ValueError, TypeError):  # a date, or what JSON has no word for
            raise _usage(f"--face {words}: {text!r} is no value") from None
    if not name.strip():
        raise _usage(f"--face {words}: a face needs a name")
    return name.strip(), values


def remove(name: str, *, file: Path | None) -> int:
    """Take the server `name` out of the fleet file; the model's file stays. Raises LaunchError."""
    target = fleet_file(file, (), ())
    if target is None:
        raise _usage("there is no fleet file here: name it with -f FILE")
    with folder_lock(target):
        return _remove(name, target)


def _remove(name: str, target: Path) -> int:
    out, err = terminals()
    text = _text_of(target)
    names = list(_servers(text, target))
    if name not in names:
        raise _usage(f"{shown_path(target)} has no server {name}; it has {', '.join(names) or 'none'}")
    group = _group(text, name)
    try:
        shorter = author.remove_server(text, name)
        shorter = author.leave_group(shorter, group) if group else shorter
    except NotEditableError as error:
        raise _usage(f"{shown_path(target)}: {error}") from None
    _write(target, text, shorter)
    out.line(f"{name} is no longer in {shown_path(target)}; `launch reload` stops it, its file stays")
    others = [other for other in _servers(shorter, target) if group and _group(shorter, other) == group]
    if len(others) == 1:
        out.line(f"{others[0]} is the last of the group {group}, which its entry names: alone in it, it takes no turns")
    show_findings(err, _new_errors(text, shorter, target))
    return 0


def _group(text: str, name: str) -> str:
    entry = next((value for key, value in servers_of(text).items() if str(key) == name), None)
    return str(entry.get("exclusive") or "") if isinstance(entry, dict) else ""


def _new_errors(before: str, after: str, target: Path) -> list[Finding]:
    """New errors of the shorter file, such as references to the server; not that it has no servers."""

    def errors(text: str) -> list[Finding]:
        try:
            return [f for f in compile_fleet([], config_dirs=[target], draft=text).findings if f.severity == "error"]
        except LaunchError as error:
            return list(error.findings)

    known = {finding.code for finding in errors(before)} | {"plan/no-servers"}
    return [finding for finding in errors(after) if finding.code not in known]


def _local_paths(what: str, err: Terminal) -> list[Path]:
    """Paths of the model files that `what` names; a repository (`hf:…`) is downloaded."""
    if not what.strip():
        raise _usage("no model is named")
    if what.startswith("hf:"):
        return download(what, err)
    return [Path(what).expanduser()]


def _all_wanted(paths: Sequence[Path], err: Terminal) -> list[author.ServerCandidate]:
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if path not in folders]
    found: dict[str, author.ServerCandidate] = {}
    for group in (*([folder] for folder in folders), *([files] if files else [])):
        for candidate in _candidates_of(group, err):
            name = author.free_name(candidate.name, {c.name for c in found.values()})
            found.setdefault(candidate.path, msgspec.structs.replace(candidate, name=name))
    return list(found.values())


def _candidates_of(paths: Sequence[Path], err: Terminal) -> list[author.ServerCandidate]:
    """The servers that can be made of the files; for a file its folder is searched, too, for what belongs to it."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        note = "to download from Hugging Face write hf:ORG/REPO or hf:ORG/REPO:QUANT"
        raise CatalogError.of("author/no-models", f"there is no file or folder {missing}", note)
    paths = [plain_path(path) for path in paths]
    named = {str(path) for path in paths if not path.is_dir()}
    places = [*paths, *(path.parent for path in paths if not path.is_dir())]
    found = init.look_for_models(list(dict.fromkeys(places)), err, usual=False, deep=not named)
    relevant = [f for f in found.findings if not named or any(path in f.message for path in named)]
    show_findings(err, list(dict.fromkeys(relevant)))
    files = [f for f in found.files if not named or f.path in named or f.facts.is_projector]
    beside = [f for f in found.files if f not in files]
    # of several quantizations of one model the largest is taken, unless another was named
    tries = (author.candidates(models) for models in ([*files, *beside], files))
    wanted = next(filter(None, ([c for c in each if not named or c.path in named] for each in tries)), [])
    if not wanted:
        shown = ", ".join(map(str, paths))
        note = "a projector (mmproj) or a draft is recognised beside its model, and is no server of its own"
        raise CatalogError.of("author/no-models", f"{shown}: no model in it can be read", note)
    return wanted


def _new_text(new: Sequence[author.ServerCandidate], target: Path, more: Wishes, out: Terminal) -> str:
    """The text of a new fleet file, as `launch init` would write it. Raises LaunchError."""
    chosen, machine = init.chosen_here(new, target)
    text = author.fleet_text(chosen, machine, schema=fleet_schema_path())
    for choice in chosen.servers:
        out.line(f"{choice.candidate.name}: {choice.why}")
        if more.roles or more.faces:
            text = author.remove_server(text, choice.candidate.name)
            text = author.add_server(text, author.server_lines(choice, machine.home, more.roles, more.faces))
    for candidate, why in chosen.left_out:
        out.line(f"{candidate.name}: left out, {why}")
    if more.roles or more.faces:
        init.try_out(text, target)
    return text


def _extended_text(text: str, new: Sequence[author.ServerCandidate], target: Path, more: Wishes) -> str:
    """The text of the fleet file with more servers; of several models those that do not fit are reported and left out.

    Raises LaunchError if none fits, or the fleet does not compile.
    """
    out, err = terminals()
    host, home = hardware.take_inventory(), os.environ.get("HOME", "")
    refused: list[Finding] = []
    before, compiled = text, compile_fleet([], config_dirs=[target], draft=text)

    def lines(choice: author.ServerChoice) -> Sequence[str]:
        return author.server_lines(choice, home, more.roles, more.faces)

    for candidate in new:
        named = msgspec.structs.replace(candidate, name=author.free_name(candidate.name, _names(text)))
        try:
            joined = add_fitting(named, text, target, compiled, host=host, lines=lines, mates=more.mates)
        except PlanError as error:
            if len(new) == 1:
                raise
            refused += error.findings
            continue
        text, compiled = joined.text, joined.compiled
        _report(out, joined)
    if text == before:
        raise PlanError(refused)
    show_findings(err, [f for f in refused if f.code.startswith("author/")])
    return text


def _report(out: Terminal, joined: Joined) -> None:
    way, choice = joined.way, joined.way.choice
    out.line(f"{choice.candidate.name}: {choice.why}")
    if way.turn_mates:
        new = f", from now on in it: {', '.join(way.drawn_in)}" if way.drawn_in else ""
        out.line(f"  one at a time in the group {choice.exclusive}, with {', '.join(way.turn_mates)}{new}")


def _text_of(target: Path) -> str:
    try:
        return target.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8; save it as UTF-8"
        raise _usage(f"{shown_path(target)} cannot be read: {why}") from None


def _servers(text: str, target: Path) -> tuple[str, ...]:
    """Names of the servers in a fleet file. Raises ConfigError if it is not YAML."""
    try:
        return tuple(str(name) for name in servers_of(text))
    except NotEditableError as error:
        compile_fleet([], config_dirs=[target], draft=text)  # which knows the line
        raise _usage(f"{shown_path(target)} is {error}") from None


def _names(text: str) -> set[str]:
    names = {str(name) for name in servers_of(text)}
    for server in servers_of(text).values():
        for key in ("roles", "aliases", "faces") if isinstance(server, dict) else ():
            more = server.get(key)
            names.update(map(str, more) if isinstance(more, list | dict) else ())
    return names


def _paths(text: str, target: Path) -> dict[str, str]:
    files = {str(n): s.get("file") if isinstance(s, dict) else s for n, s in servers_of(text).items()}
    return {str((target.parent / Path(f).expanduser()).absolute()): n for n, f in files.items() if isinstance(f, str)}


def _write(target: Path, before: str | None, text: str) -> None:
    """Write the fleet file in place of the text `before` (None: no file).

    Raises ConfigError or HostError; then it is unchanged.
    """
    if before is None:
        init.write_new(target, text)
        return
    try:
        replace_if_unchanged(target, before.encode(), text.encode())
    except ChangedMeanwhileError:
        message = f"{shown_path(target)} was changed meanwhile by somebody else and stays as it is: do it again"
        raise _usage(message) from None
    except OSError as error:
        raise init.unwritable(target, error) from None


def _usage(message: str) -> ConfigError:
    note = "launch add FILE.gguf… | DIR | hf:ORG/REPO[:QUANT]; launch remove NAME"
    return ConfigError.of("author/usage", message, note)
