"""`launch pull`: the files that the config names and this machine lacks, from the repositories that it names."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher.catalog import resolve_path, split_paths
from launcher.cli.hub import bring
from launcher.cli.terminal import terminals
from launcher.compiler import compose_config
from launcher.errors import ConfigError, LaunchError


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one repository (all parts of a split one) that are not where the config has them."""

    repo: str | None
    path: str
    names: tuple[str, ...]
    key: str


def pull_models(overrides: Sequence[str], config_dirs: Sequence[Path], *, dry_run: bool, no_color: bool) -> int:
    """Fetch what is missing, one after the other. Raises LaunchError at the first that cannot be had."""
    out, err = terminals(no_color=no_color)
    missing = list(_missing(*_entries(overrides, config_dirs)))
    known, unknown = [m for m in missing if m.repo], [m for m in missing if m.repo is None]
    for entry in known:
        out.line(f"{entry.path}  from {entry.repo}")
    for entry in unknown:
        out.line(f"{entry.path} is not here, and {entry.key} names no repo")
    if not missing:
        out.line("every model file that the config names is here")
    if dry_run:
        return 0
    for entry in known:
        bring(entry.repo or "", Path(entry.path), entry.names, err)
        out.line(f"{entry.path} is here")
    if unknown:
        first, count = unknown[0], f"{len(unknown)} file{' has' if len(unknown) == 1 else 's have'}"
        note = f"write {first.key}.repo=ORG/REPO, the repository on Hugging Face that has {first.names[0]}"
        message = f"{count} no repo to be fetched from"
        raise ConfigError.of("author/no-repository", message, note, key=f"{first.key}.repo")
    return 0


def _entries(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[Mapping[str, Any], set[str], str]:
    """Models as written, the names of those that servers load, and the folder that relative paths start from."""
    try:
        fleet = compose_config(overrides, config_dirs=config_dirs).fleet
    except LaunchError as error:
        if mistyped := [f for f in error.findings if f.code == "config/override"]:
            note = "a model that no config names yet is downloaded by: launch add hf:ORG/REPO"
            raise ConfigError([msgspec.structs.replace(f, notes=(*f.notes, note)) for f in mistyped]) from None
        # a fleet file's models may lack what only their files say, and these are what is to be fetched
        file = next((path for path in config_dirs if path.is_file()), None)
        tree = _written(file) if file is not None else None
        if tree is None or file is None:
            raise
        models = tree.get("models")
        return models if isinstance(models, dict) else {}, set(models or ()), str(file.parent)
    drafts = {s.draft.model for s in fleet.servers.values() if s.draft is not None and s.draft.model}
    used = {s.model for s in fleet.servers.values()} | drafts
    return msgspec.to_builtins(fleet.models), used, fleet.hardware.model_dir


def _written(file: Path) -> dict[str, Any] | None:
    """A fleet file's tree; None where it is none."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return tree if isinstance(tree, dict) else None


def _missing(models: Mapping[str, Any], used: set[str], folder: str) -> Iterator[Missing]:
    """What is not there, by model and quantization; projectors, too."""
    for name in sorted(used & set(models)):
        model = models[name] if isinstance(models[name], dict) else {}
        files = {f"files.{q}": file for q, file in (model.get("files") or {}).items()}
        for key, entry in {**files, "projector": model.get("projector")}.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                continue
            path = resolve_path(os.path.expanduser(os.path.expandvars(entry["path"])), folder)  # noqa: PTH111
            parts = (split_paths(path) if entry.get("parts", 1) > 1 else None) or (path,)
            absent = tuple(os.path.basename(p) for p in parts if not os.path.lexists(p))  # noqa: PTH119
            if absent:
                yield Missing(repo=entry.get("repo"), path=path, names=absent, key=f"models.{name}.{key}")
