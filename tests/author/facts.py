"""Headers as values, for a room that reads none."""

from __future__ import annotations

from typing import Any

from launcher.author.pairing import ModelOnDisk
from launcher.ir.catalog import FilePart, HeaderFacts, ModelFile
from launcher.ir.config import ArchitectureConfig

GIB = 1024**3


def on_disk(path: str, *, size_gib: float = 1.0, widths: tuple[int, ...] = (), **architecture: Any) -> ModelOnDisk:
    """A model file of that size; a projector where `arch` is clip."""
    fields: dict[str, Any] = {"arch": "llama", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 4}
    fields |= {"n_vocab": 100, "n_ctx_train": 32768, **architecture}
    name = path.rpartition("/")[2].removesuffix(".gguf")
    file = ModelFile(
        model=name,
        quantization="q4_k_m",
        source="gguf",
        architecture=ArchitectureConfig(**fields),
        tensors=(),
        parts=(FilePart(path=path, size_bytes=int(size_gib * GIB)),),
    )
    facts = HeaderFacts(file=file, base_type="q4_K", block=256, block_bytes=144, widths=widths)
    return ModelOnDisk(path=path, name=name, facts=facts)
