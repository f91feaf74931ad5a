"""Every model file that a fleet's config names, as it lies on a disk, used just now or not. I/O: stat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.catalog.declared import declared_file
from launcher.catalog.file_types import find_mix
from launcher.catalog.locate import PACKAGE_SCHEME, resolve_path, split_paths
from launcher.errors import CatalogError
from launcher.ir.catalog import Catalog, ModelFile, StoredFile
from launcher.ir.config import FleetConfig, ModelConfig


def vault(fleet: FleetConfig, catalog: Catalog) -> tuple[StoredFile, ...]:
    """The files of all models that servers, drafts and rungs name, in all quantizations, and projectors; each once.

    Files inside packages are not among them, nor what cannot be sized. A file at hand has its own size, another what
    is published, else what the declared architecture makes.
    """
    found = {file.path: file for file in _files(fleet, catalog)}
    return tuple(found.values())


def _files(fleet: FleetConfig, catalog: Catalog) -> Iterator[StoredFile]:
    """As `vault`, unsorted."""
    drafts = (s.draft.model for s in fleet.servers.values() if s.draft is not None and s.draft.model)
    for name in dict.fromkeys((*(s.model for s in fleet.servers.values()), *drafts)):
        model = fleet.models.get(name)
        if model is None:
            continue
        for quantization, entry in model.files.items():
            path = _place(entry.path, fleet)
            size = _size(path, fleet, name, quantization, catalog.files) if path else 0
            if path and size:
                used = catalog.get(name, quantization) is not None
                key = f"models.{name}.files.{quantization}"
                yield StoredFile(path=path, key=key, bytes=size, here=Path(path).exists(), used=used)
        if model.projector is not None and (path := _place(model.projector.path, fleet)):
            size = _there((path,)) or model.projector.bytes or 0
            if size:
                key = f"models.{name}.projector"
                yield StoredFile(path=path, key=key, bytes=size, here=Path(path).exists(), used=True)


def _place(path: str, fleet: FleetConfig) -> str:
    """Where a file lies; "" of one inside a package, or of none."""
    if path.startswith(PACKAGE_SCHEME):
        return ""
    try:
        return resolve_path(path, fleet.hardware.model_dir)
    except CatalogError:
        return ""


def _size(path: str, fleet: FleetConfig, name: str, quantization: str, known: Mapping[str, ModelFile]) -> int:
    """Bytes of a model's file with all its parts; 0 where nothing says."""
    entry = fleet.models[name].files[quantization]
    if there := _there(split_paths(path) or (path,)):
        return there
    if (file := known.get(f"{name}@{quantization}")) is not None:
        return file.file_bytes
    return entry.bytes or _declared(fleet.models[name], name, quantization, _mix(fleet, quantization), path)


def _there(paths: tuple[str, ...]) -> int:
    """Bytes of files that are all at hand, else 0."""
    try:
        return sum(Path(path).stat().st_size for path in paths)
    except OSError:
        return 0


def _mix(fleet: FleetConfig, quantization: str) -> str:
    """The mix of a quantization."""
    config = fleet.quantizations.get(quantization)
    return config.mix if config else quantization


def _declared(model: ModelConfig, name: str, quantization: str, mix_name: str, path: str) -> int:
    """Bytes of a file as the declared architecture makes it; 0 where that cannot be."""
    mix = find_mix(mix_name)
    if mix is None:
        return 0
    file, _ = declared_file(model, name, quantization, mix, path)
    return file.file_bytes if file else 0
