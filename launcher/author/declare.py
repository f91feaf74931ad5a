"""A model file as an entry of the catalogue: what may be planned where the file is not. Pure."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import msgspec
import yaml

from launcher.author.pairing import slug
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig


def declaration(model: ModelFile) -> dict[str, Any]:
    """The entry below `models:`: its name (as `launch init` names servers), title, architecture and file.

    `model` is as `describe` gives it; a mix that the file does not name is called by its commonest type of tensors.
    """
    first = PurePath(model.path)
    types = [tensor.type.lower() for tensor in model.tensors]
    file: dict[str, Any] = {"path": model.path, "bytes": model.file_bytes}
    if len(model.parts) > 1:
        file["parts"] = len(model.parts)
    entry = {
        "title": model.model,
        "source": f"header of {first.name}",
        "architecture": _written(model.architecture),
        "files": {model.quantization or max(sorted(set(types)), key=types.count): file},
    }
    return {slug(first.name): entry}


def declaration_text(models: list[ModelFile]) -> str:
    """YAML of `models:`, to be pasted into a fleet file; files of one model come together."""
    entries: dict[str, Any] = {}
    for model in models:
        for name, entry in declaration(model).items():
            known = entries.setdefault(name, entry)
            known["files"] |= entry["files"]
    return yaml.safe_dump({"models": entries}, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _written(architecture: ArchitectureConfig) -> dict[str, Any]:
    """Fields that are not as by default."""
    fields = msgspec.structs.fields(architecture)
    values = {f.name: getattr(architecture, f.name) for f in fields if getattr(architecture, f.name) != f.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
