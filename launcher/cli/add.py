"""`launch add` and `launch remove`: one server more or less in the fleet file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher.author import Candidate, Choice, Memory, fleet_text, free_name, server_lines
from launcher.author.choice import CONTEXTS, Chosen, tokens_for, tokens_words
from launcher.author.edit import NotEditableError, add_server, remove_server
from launcher.cli.findings import show_findings
from launcher.cli.init import (
    Needing,
    as_candidates,
    as_seen,
    best_engine,
    describe,
    look_for_models,
    memory_of,
    try_out,
    unwritable,
    write_new,
)
from launcher.cli.onefile import FLEET_FILE, fleet_file, shown_path
from launcher.cli.terminal import Terminal, terminals
from launcher.discover import plain_path
from launcher.errors import CatalogError, ConfigError, Finding, HostError, LaunchError
from launcher.files import write_atomic
from launcher.files.packaged import fleet_schema_path
from launcher.ir.host import HostInventory
from launcher.sizes import gib


def add(
    what: str,
    *,
    file: Path | None,
    name: str | None,
    roles: Sequence[str],
    faces: Sequence[str] = (),
    dry_run: bool,
    no_color: bool,
) -> int:
    """Add the models of a file, a folder or a repository. Raises LaunchError; then the file is as it was."""
    from launcher.hardware import take_inventory

    out, err = terminals(no_color=no_color)
    more = Names(roles=tuple(roles), faces=dict(map(_face, faces)))
    paths = _brought(what, err)
    target = fleet_file(file, (), ()) if file is None or file.exists() else None
    target = target or (file or Path(FLEET_FILE)).absolute()
    text = _text_of(target) if target.exists() else None
    found = _wanted(paths, err)
    new = [c for c in found if text is None or c.path not in _paths(text, target)]
    if not new:
        out.line(f"{shown_path(target)} has {', '.join(c.name for c in found[:3])} already")
        return 0
    if len(new) > 1 and (name is not None or faces):
        option = "--face" if name is None else "--name"
        raise ConfigError([_usage(f"{option} is for one model, and {what} has {len(new)}")])
    if name is not None:
        new = [msgspec.structs.replace(new[0], name=name)]
    host = take_inventory()
    if text is None:
        host = as_seen(host, best_engine(host))
    before, free = text, _free(target if text is not None else None, memory_of(host))
    for candidate in new:
        text, choice = _with(text, candidate, target, more, host=host, free=free)
        free -= choice.bytes if choice.tier == "hot" else 0
        out.line(f"{choice.candidate.name}: {choice.why}")
    if dry_run:
        out.write(text or "")
        return 0
    _write(target, text or "", new=before is None)
    out.line(f"wrote {shown_path(target)}; `launch plan` shows it, `launch` or `launch reload` starts it")
    return 0


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Further names of a server: aliases, and faces with their request values."""

    roles: tuple[str, ...]
    faces: dict[str, dict[str, Any]]


def _face(words: str) -> tuple[str, dict[str, Any]]:
    """`NAME,KEY=VALUE…`: one face; a dotted key lies deeper, values are YAML's. Raises ConfigError."""
    name, *pairs = words.split(",")
    values: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not all((*parents, last)):
            raise ConfigError([_usage(f"--face {words}: {pair!r} is not KEY=VALUE")])
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError([_usage(f"--face {words}: {parent} is a value already")])
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError([_usage(f"--face {words}: {text!r} is no value")]) from None
    if not name.strip():
        raise ConfigError([_usage(f"--face {words}: a face needs a name")])
    return name.strip(), values


def remove(name: str, *, file: Path | None, no_color: bool) -> int:
    """Take the server `name` out of the fleet file; the model's file stays. Raises LaunchError."""
    out, _ = terminals(no_color=no_color)
    target = fleet_file(file, (), ())
    if target is None:
        raise ConfigError([_usage("there is no fleet file here: name it with -f FILE")])
    text = _text_of(target)
    names = list(_servers(text, target))
    if name not in names:
        raise ConfigError([_usage(f"{shown_path(target)} has no server {name}; it has {', '.join(names) or 'none'}")])
    try:
        shorter = remove_server(text, name)
    except NotEditableError as error:
        raise ConfigError([_usage(f"{shown_path(target)}: {error}")]) from None
    _write(target, shorter, new=False)
    out.line(f"{name} is no longer in {shown_path(target)}; `launch reload` stops it, its file stays")
    return 0


def _brought(what: str, err: Terminal) -> list[Path]:
    """Paths of model files on this machine: what was named, or what it stands for once it is downloaded."""
    if not what.strip():
        raise ConfigError([_usage("no model is named")])
    if what.startswith("hf:"):
        from launcher.cli.hub import download

        return download(what, err)
    return [Path(what).expanduser()]


def _wanted(paths: Sequence[Path], err: Terminal) -> list[Candidate]:
    """The servers that the files could be; of a file alone its folder is looked at too, for what lies beside it."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise CatalogError([_absent(missing)])
    paths = [plain_path(path) for path in paths]
    named = {str(path) for path in paths if not path.is_dir()}
    places = [*paths, *(path.parent for path in paths if not path.is_dir())]
    found = look_for_models(list(dict.fromkeys(places)), err, usual=False, deep=not named)
    relevant = [f for f in found.findings if not named or any(path in f.message for path in named)]
    show_findings(err, relevant)
    files = found.files if not named else tuple(f for f in found.files if f.path in named or f.facts.is_projector)
    beside = tuple(f for f in found.files if f not in files)
    every = as_candidates(msgspec.structs.replace(found, files=(*files, *(f for f in beside if named))))
    wanted = [c for c in every if not named or c.path in named]
    if not wanted:
        # of several quantizations of one model the largest is taken, unless another was named
        wanted = list(as_candidates(msgspec.structs.replace(found, files=files)))
    wanted = [c for c in wanted if not named or c.path in named]
    if not wanted:
        raise CatalogError([_no_model(paths)])
    return wanted


def _with(
    text: str | None, candidate: Candidate, target: Path, more: Names, *, host: HostInventory, free: int
) -> tuple[str, Choice]:
    """The text with one server more, and that server. Raises LaunchError where the fleet would not compile.

    `free`: bytes that the others leave.
    """
    needs = Needing(host, packaged=text is None or not _ours(text))
    choice = _sized(candidate, free, needs)
    home = os.environ.get("HOME", "")
    if text is None:
        new = fleet_text(Chosen(servers=(choice,)), describe(host, best_engine(host)), schema=fleet_schema_path())
        if more.roles or more.faces:
            new = remove_server(new, candidate.name)
            new = add_server(new, server_lines(choice, home, more.roles, more.faces))
    else:
        name = free_name(candidate.name, _names(text, target))
        choice = msgspec.structs.replace(choice, candidate=msgspec.structs.replace(candidate, name=name))
        try:
            new = add_server(text, server_lines(choice, home, more.roles, more.faces))
        except NotEditableError as error:
            raise ConfigError([_usage(f"{shown_path(target)}: {error}")]) from None
    try_out(new, target)
    return new, choice


def _free(target: Path | None, memory: Memory) -> int:
    """Bytes that the fleet in `target` leaves, of what there is now."""
    if target is None:
        return memory.pool
    from launcher.compiler import compile_fleet

    try:
        plan = compile_fleet([], config_dirs=[target]).plan
    except LaunchError:
        return memory.pool  # what is wrong with it is said when the longer one is compiled
    on_cards = any(d.kind == "gpu" for d in plan.devices)  # those that its engine sees
    used = sum(d.peak_bytes for d in plan.devices if (d.kind == "gpu") == on_cards)
    return (memory.cards if on_cards else memory.ram) - used


def _sized(candidate: Candidate, free: int, needs: Needing) -> Choice:
    """The longest context that fits beside what is there; on demand where none does."""
    for context in CONTEXTS:
        tokens = tokens_for(candidate, context)
        size = needs(candidate, tokens)
        if size <= free:
            why = f"{gib(size)}, always up; {tokens_words(candidate, tokens)}"
            return Choice(candidate=candidate, tier="hot", n_ctx_per_slot=tokens, bytes=size, why=why)
    tokens = tokens_for(candidate, CONTEXTS[-2])
    size = needs(candidate, tokens)
    why = f"{gib(size)}, on demand: {gib(max(0, free))} are left beside the others; {tokens_words(candidate, tokens)}"
    return Choice(candidate=candidate, tier="warm", n_ctx_per_slot=tokens, bytes=size, why=why)


def _text_of(target: Path) -> str:
    """What a fleet file says. Raises ConfigError."""
    try:
        return target.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8; save it as UTF-8"
        raise ConfigError([_usage(f"{shown_path(target)} cannot be read: {why}")]) from None


def _servers(text: str, target: Path) -> tuple[str, ...]:
    """Names of the servers in a fleet file. Raises ConfigError where it is not YAML."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([_usage(f"{shown_path(target)} is not YAML: {' '.join(str(error).split())[:200]}")]) from None
    servers = tree.get("servers") if isinstance(tree, dict) else None
    return tuple(str(name) for name in servers) if isinstance(servers, dict) else ()


def _names(text: str, target: Path) -> set[str]:
    """Every name that a request may use already: of servers, their roles, aliases and faces."""
    names = set(_servers(text, target))
    for server in ((yaml.safe_load(text) or {}).get("servers") or {}).values() if names else ():
        for key in ("roles", "aliases", "faces") if isinstance(server, dict) else ():
            more = server.get(key)
            names.update(map(str, more) if isinstance(more, list | dict) else ())
    return names


def _ours(text: str) -> bool:
    """Whether a fleet file brings its own engine. A text that is no YAML brings none."""
    tree = yaml.safe_load(text)
    return isinstance(tree, dict) and "engines" in tree


def _paths(text: str, target: Path) -> set[str]:
    """Absolute paths of the files that the servers of a text name."""
    servers = (yaml.safe_load(text) or {}).get("servers") if _servers(text, target) else {}
    files = (s.get("file") if isinstance(s, dict) else s for s in (servers or {}).values())
    return {str((target.parent / Path(f).expanduser()).absolute()) for f in files if isinstance(f, str)}


def _write(target: Path, text: str, *, new: bool) -> None:
    """Write the fleet file. Raises HostError; then it is as it was."""
    if new:
        write_new(target, text)
        return
    try:
        write_atomic(target, text, mode=target.stat().st_mode & 0o777)
    except OSError as error:
        raise HostError([unwritable(target, error)]) from None


def _usage(message: str) -> Finding:
    """Words that do not fit what is there."""
    note = "launch add FILE.gguf | DIR | hf:ORG/REPO[:QUANT]; launch remove NAME"
    return Finding(code="author/usage", severity="error", key="", message=message, notes=(note,))


def _absent(path: Path) -> Finding:
    """A model that is not there."""
    note = "to download from Hugging Face write hf:ORG/REPO or hf:ORG/REPO:QUANT"
    message = f"there is no file or folder {path}"
    return Finding(code="author/no-models", severity="error", key="", message=message, notes=(note,))


def _no_model(paths: Sequence[Path]) -> Finding:
    """Files of which none is a model."""
    shown = ", ".join(str(path) for path in paths)
    note = "a projector (mmproj) or a draft is recognised beside its model, and is no server of its own"
    message = f"{shown}: no model in it can be read"
    return Finding(code="author/no-models", severity="error", key="", message=message, notes=(note,))
