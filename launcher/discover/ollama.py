"""Ollama's store: manifests name blobs by their digest; a GGUF file there has no name of its own. I/O.

Source: ollama docs and server/modelpath.go: `manifests/HOST/NAMESPACE/MODEL/TAG`, `blobs/sha256-…`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.errors import Finding, fault

_NOT_IN_FLEET = "the Ollama model that it describes is not in the fleet"
_MODEL, _PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"


class _ManifestLayer(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: list[_ManifestLayer] = []


def ollama_models(root: Path, findings: list[Finding]) -> Iterator[tuple[str, str, str | None]]:
    """(path, name, projector's path) of each model in the store at `root`; what cannot be read is a finding."""
    try:
        manifests = sorted(p for p in (root / "manifests").rglob("*") if p.is_file())
    except OSError as error:
        findings.append(unreadable(root, error, _NOT_IN_FLEET))
        return
    for path in manifests:
        try:
            layers = msgspec.json.decode(path.read_bytes(), type=_Manifest).layers
        except (OSError, *UNREADABLE) as error:
            findings.append(unreadable(path, str(error), _NOT_IN_FLEET))
            continue
        blobs = {layer.media_type: _blob(root, layer.digest) for layer in layers}
        if _MODEL in blobs:
            tag = "" if path.name == "latest" else f"-{path.name}"
            projector = blobs.get(_PROJECTOR)
            yield str(blobs[_MODEL]), f"{path.parent.name}{tag}", str(projector) if projector else None


def _blob(root: Path, digest: str) -> Path:
    return root.absolute() / "blobs" / digest.replace(":", "-", 1).replace("/", "_")


def unreadable(path: Path | str, why: OSError | str, note: str) -> Finding:
    """A place, or a file, that could not be read; `note`: what that means, or what to do."""
    reason = why if isinstance(why, str) else why.strerror or str(why)
    return fault("author/unreadable", "", f"{path}: {reason}", note, severity="warning")
