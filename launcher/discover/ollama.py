"""Ollama's store: manifests name blobs by their digest; a GGUF file there has no name of its own. I/O.

Source: ollama docs and server/modelpath.go: `manifests/HOST/NAMESPACE/MODEL/TAG`, `blobs/sha256-…`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher.errors import Finding

_MODEL, _PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"


class _Layer(msgspec.Struct):
    """One blob of a manifest."""

    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    """What a tag of a model is made of."""

    layers: list[_Layer] = []


def ollama_models(root: Path, findings: list[Finding]) -> Iterator[tuple[str, str, str | None]]:
    """(path, name, projector's path) of each model in the store at `root`; what cannot be read is a finding."""
    try:
        manifests = sorted(p for p in (root / "manifests").rglob("*") if p.is_file())
    except OSError as error:
        findings.append(_damaged(root, error.strerror or str(error)))
        return
    for path in manifests:
        try:
            layers = msgspec.json.decode(path.read_bytes(), type=_Manifest).layers
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            findings.append(_damaged(path, str(error)))
            continue
        blobs = {layer.media_type: _blob(root, layer.digest) for layer in layers}
        if _MODEL in blobs:
            tag = "" if path.name == "latest" else f"-{path.name}"
            projector = blobs.get(_PROJECTOR)
            yield str(blobs[_MODEL]), f"{path.parent.name}{tag}", str(projector) if projector else None


def _blob(root: Path, digest: str) -> Path:
    """Where the blob of a digest lies."""
    return root.absolute() / "blobs" / digest.replace(":", "-", 1).replace("/", "_")


def _damaged(path: Path, why: str) -> Finding:
    """A manifest that cannot be read."""
    return Finding(
        code="author/unreadable",
        severity="warning",
        key="",
        message=f"{path}: {why}",
        notes=("the Ollama model that it describes is not in the fleet",),
    )
