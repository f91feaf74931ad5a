"""Multimodal projectors: read where the file is at hand, else sized as declared. I/O: reads headers."""

from __future__ import annotations

import os

from launcher.catalog.files import read_header
from launcher.catalog.gguf import Header
from launcher.catalog.locate import resolve_path
from launcher.errors import CatalogError, Finding
from launcher.ir.catalog import ProjectorFile
from launcher.ir.config import ModelConfig, ProjectorConfig


def projector_file(
    config: ModelConfig, model: str, model_dir: str, n_embd: int
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """The projector of a model of width `n_embd`, with its findings; None when it cannot be sized.

    Absent files count with their declared size; without one: `catalog/projector-size-unknown`.
    """
    entry, key = config.projector, f"models.{model}.projector"
    if entry is None:
        return None, ()
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if os.path.lexists(path):
            return _read(entry, model, path, n_embd)
    except CatalogError as error:
        return None, error.findings
    if entry.bytes is None:
        message = f"the projector of {model} is not at {path!r} and declares no size"
        notes = (f"is the path right? {key}.path", f"to plan where the file is not, write its size: {key}.bytes=…")
        return None, (_error("catalog/projector-size-unknown", key, message, *notes),)
    return _file(entry, model, path, entry.bytes), ()


def _file(
    entry: ProjectorConfig, model: str, path: str, tensor_bytes: int, header: Header | None = None
) -> ProjectorFile:
    """The value for the catalogue; `header` of a file at hand."""
    return ProjectorFile(
        model=model,
        path=path,
        tensor_bytes=tensor_bytes,
        compute_bytes=entry.compute_bytes,
        source="gguf" if header else "declared",
        modalities=(header and _modalities(header)) or ("image",),
    )


def _modalities(header: Header) -> tuple[str, ...]:
    """What a projector takes: it has an encoder for it."""
    kinds = {"image": "vision", "audio": "audio"}
    return tuple(kind for kind, encoder in kinds.items() if f"clip.{encoder}.block_count" in header.values)


def _read(
    entry: ProjectorConfig, model: str, path: str, n_embd: int
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """A projector at hand: it must be one, and fit the model's width."""
    key = f"models.{model}.projector.path"
    header = read_header(path, key=key)
    arch = header.values.get("general.architecture")
    if arch != "clip":
        message = f"{path!r} is a model of architecture {arch!r}, not a multimodal projector"
        return None, (_error("catalog/projector-mismatch", key, message),)
    widths = projected_widths(header)
    findings: tuple[Finding, ...] = ()
    if widths and n_embd not in widths:
        message = f"{path!r} projects to {'/'.join(map(str, widths))} dimensions, but {model} has {n_embd}"
        findings = (_error("catalog/projector-mismatch", key, message, "llama-server refuses this pair"),)
    return _file(entry, model, path, sum(t.size_bytes for t in header.tensors), header), findings


def projected_widths(header: Header) -> tuple[int, ...]:
    """Widths that a projector's output has, by what its header says; empty when it says nothing."""
    keys = ("clip.vision.projection_dim", "clip.audio.projection_dim", "clip.projection_dim")
    found = (header.values.get(key) for key in keys)
    return tuple(dict.fromkeys(v for v in found if type(v) is int and v > 0))


def _error(code: str, key: str, message: str, *notes: str) -> Finding:
    """An error about a projector."""
    return Finding(code=code, severity="error", key=key, message=message, notes=notes)
