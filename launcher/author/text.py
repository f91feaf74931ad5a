"""The text of a fleet file, with reasons as comments, and of model files as entries of the catalogue. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec
import yaml

from launcher.author.choice import Chosen, ServerChoice
from launcher.author.pairing import slug
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig

_PLAIN = re.compile(r"[A-Za-z0-9_./~+-][A-Za-z0-9_./~+@=-]*")
_SPECIAL = re.compile(r"(?i:y|n|yes|no|true|false|on|off|null|~)|[-+.]?[0-9][0-9_.eE+-]*|-+")
WIDTH = 120
TITLE_WIDTH = 40
"""Characters of a title at most, so that the reason after it is never cut."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, in words: one line each for the hardware and the engine."""

    hardware: str
    engine: str
    binary: str | None = None
    """The llama-server to be written; None: the one that config uses when nothing is written."""
    home: str = ""
    cards: bool = False


def scalar(text: str) -> str:
    """`text` as a YAML scalar: plain where YAML reads it as the same string, quoted elsewhere."""
    if _PLAIN.fullmatch(text) and not _SPECIAL.fullmatch(text):
        return text
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def flow(value: Any) -> str:
    """A value as YAML in one line. Raises ValueError or TypeError for what JSON cannot express."""
    if isinstance(value, str):
        return scalar(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(flow(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{scalar(str(k))}: {flow(v)}' for k, v in value.items())}}}"
    return json.dumps(value, allow_nan=False)


def modeline(schema: str) -> str:
    """The line by which editors find the JSON Schema of a config file; `schema`: a path or a URL."""
    return f"# yaml-language-server: $schema={schema}"


def at_home(path: str, home: str) -> str:
    """`path` with `~` in place of the user's home, if it lies there."""
    return f"~{path.removeprefix(home)}" if home and path.startswith(f"{home}/") else path


def server_lines(
    choice: ServerChoice, home: str, aliases: Sequence[str] = (), faces: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """The lines of one entry of `servers:`, with its reason. `faces`: model name → request values of a face."""
    candidate = choice.candidate
    title = candidate.facts.file.model
    title = title if len(title) <= TITLE_WIDTH else f"{title[: TITLE_WIDTH - 1]}…"
    lines = [_comment(f"{title}: {choice.why}", "  "), f"  {scalar(candidate.name)}:"]
    shown = {name: {"request_defaults": values} if values else {} for name, values in (faces or {}).items()}
    ranks = candidate.kind == "rerank"
    fields: dict[str, Any] = {
        "file": at_home(candidate.path, home),
        "projector": candidate.projector and at_home(candidate.projector, home),
        "draft": candidate.draft and at_home(candidate.draft, home),
        "aliases": aliases,
        "faces": shown,
        "embedding": ranks,
        "pooling": "rank" if ranks else "",
        "n_ctx_per_slot": choice.n_ctx_per_slot,
        "exclusive": choice.exclusive,
        "tier": "warm" if choice.tier == "warm" else "",
        "default": choice.tier != "warm" and bool(choice.exclusive),
    }
    return lines + [f"    {key}: {flow(value)}" for key, value in fields.items() if value]


def fleet_text(chosen: Chosen, machine: Machine, *, schema: str | None = None) -> str:
    """The whole fleet file. `schema`: where an editor finds the JSON Schema of config files."""
    lines = [modeline(schema)] if schema else []
    lines += [
        "# Made by `launch init` from what was found here; yours to edit, and never overwritten.",
        "# `launch plan` shows what it takes, `launch` starts it. Ports and slots are chosen where none is named.",
        _comment(f"Machine: {machine.hardware}"),
        _comment(f"Engine: {machine.engine}"),
    ]
    if machine.binary:
        binary = scalar(at_home(machine.binary, machine.home))
        lines += ["engines:", f"  default: {{binary: {binary}, dialect: probe}}"]
    if not machine.cards and sum(choice.tier == "hot" for choice in chosen.servers) > 1:
        lines += ["waive:", "  - cpu/oversubscribed: one person asks one of them at a time"]
    lines.append("servers:")
    aliases = names_of(chosen.servers)
    for choice in chosen.servers:
        lines += server_lines(choice, machine.home, aliases.get(choice.candidate.name, ()))
    if chosen.left_out:
        lines.append("# Left out (add one with `launch add FILE`):")
        shown = chosen.left_out[:5]
        lines += [_comment(f"  {at_home(c.path, machine.home)}: {why}") for c, why in shown]
        if len(chosen.left_out) > len(shown):
            lines.append(f"#   and {len(chosen.left_out) - len(shown)} more")
    return "\n".join(lines) + "\n"


def names_of(servers: Sequence[ServerChoice]) -> dict[str, tuple[str, ...]]:
    """Server → the aliases that the first of each kind gets: `chat`, `vision`, `embeddings`, `rerank`."""
    names: dict[str, list[str]] = {}
    taken = {choice.candidate.name for choice in servers}
    for word, kind in (("chat", "chat"), ("vision", "chat"), ("embeddings", "embed"), ("rerank", "rerank")):
        fitting = (c.candidate for c in servers if c.candidate.kind == kind)
        first = next((c for c in fitting if word != "vision" or c.projector), None)
        if first is not None and word not in taken:
            names.setdefault(first.name, []).append(word)
    return {name: tuple(words) for name, words in names.items()}


def _comment(text: str, indent: str = "") -> str:
    """One comment line; unprintable characters, which could end it, are replaced."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    line = f"{indent}# {plain}"
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def declaration(model: ModelFile) -> dict[str, Any]:
    """The entry below `models:`: its name (as `launch init` names servers), title, architecture and file.

    `model` is as `describe` returns it; a quantization that the file does not name is called by its most frequent
    tensor type.
    """
    first = PurePath(model.path)
    types = [tensor.type.lower() for tensor in model.tensors]
    file: dict[str, Any] = {"path": model.path, "bytes": model.file_bytes}
    if len(model.parts) > 1:
        file["parts"] = len(model.parts)
    entry = {
        "title": model.model,
        "source": f"header of {first.name}",
        "architecture": _non_defaults(model.architecture),
        "files": {model.quantization or max(sorted(set(types)), key=types.count): file},
    }
    return {slug(first.name): entry}


def declaration_text(models: list[ModelFile]) -> str:
    """YAML of `models:`, to be pasted into a fleet file; files of one model share an entry."""
    entries: dict[str, Any] = {}
    for model in models:
        for name, entry in declaration(model).items():
            known = entries.setdefault(name, entry)
            known["files"] |= entry["files"]
    return yaml.safe_dump({"models": entries}, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _non_defaults(architecture: ArchitectureConfig) -> dict[str, Any]:
    fields = msgspec.structs.fields(architecture)
    values = {f.name: getattr(architecture, f.name) for f in fields if getattr(architecture, f.name) != f.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
