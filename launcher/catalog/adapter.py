"""LoRA adapters: read where the file is at hand, else sized as declared. I/O: reads headers."""

from __future__ import annotations

import os

from launcher.catalog.files import read_header
from launcher.catalog.locate import resolve_path
from launcher.errors import CatalogError, Finding
from launcher.ir.catalog import AdapterFile
from launcher.ir.config import LoraConfig


def adapter_file(entry: LoraConfig, model_dir: str, key: str) -> tuple[AdapterFile | None, tuple[Finding, ...]]:
    """The adapter at `entry`, with its findings; None when it cannot be sized.

    Findings: `catalog/adapter-size-unknown`, `catalog/not-an-adapter`, and those of headers.
    """
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if not os.path.lexists(path):
            if entry.bytes is not None:
                return AdapterFile(path=path, tensor_bytes=entry.bytes), ()
            message = f"the adapter is not at {path!r} and declares no size"
            return None, (_error("catalog/adapter-size-unknown", key, message, f"write its size: {key}.bytes=…"),)
        header = read_header(path, key=f"{key}.path")
    except CatalogError as error:
        return None, error.findings
    if header.values.get("general.type") != "adapter":
        message = f"{path!r} is no LoRA adapter: its general.type is {header.values.get('general.type')!r}"
        return None, (_error("catalog/not-an-adapter", f"{key}.path", message),)
    return AdapterFile(path=path, tensor_bytes=sum(t.size_bytes for t in header.tensors)), ()


def _error(code: str, key: str, message: str, *notes: str) -> Finding:
    """An error about an adapter."""
    return Finding(code=code, severity="error", key=key, message=message, notes=notes)
