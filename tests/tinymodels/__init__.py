"""Tiny random-weight GGUF models that the real llama-server loads in tens of milliseconds, for tests and benchmarks.

In: an architecture name, a directory, sizes. Out: paths of GGUF files. I/O: writes only what it is asked to.
The same arguments give the same bytes. Beside it: `full_size` (shapes of real models for `write_sparse`), `faulty`
(files spoiled on purpose), `running` (the real server on a model for the length of a `with` block).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import dense, encoder, hybrid, mixture, storage, vocabulary
from .blueprint import Blueprint, Shape

__all__ = ["ARCHITECTURES", "PROJECTORS", "Shape", "plan", "shape_of", "write", "write_parts", "write_sparse"]

_FAMILIES: dict[str, tuple[Shape, Callable[[str, Shape], Blueprint]]] = {
    name: (shape, family.build) for family in (dense, mixture, hybrid, encoder) for name, shape in family.SHAPES.items()
}

PROJECTORS = {"qwen2vl": "qwen2vl-projector", "qwen3vlmoe": "qwen3vl-projector"}
"""Multimodal projectors, by the text architecture that they feed; `write` takes their names too."""

ARCHITECTURES: tuple[str, ...] = tuple(name for name in _FAMILIES if not name.endswith("-projector"))
"""Models that `write` takes. `draft` is a llama of one layer that shares vocabulary and embeddings with `llama`."""


def write(arch: str, directory: Path, *, quantization: str = "f16", seed: int = 0, **shape_overrides: int) -> Path:
    """Write a tiny model and return its path.

    `quantization` is a GGML type name (f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 mxfp4); `shape_overrides` are fields of
    `Shape`. Raises ValueError for an unknown architecture or type, TypeError for an unknown field.
    """
    blueprint, signs = plan(arch, **shape_overrides)
    path = directory / f"{_stem(arch, quantization, seed, shape_overrides)}.gguf"
    storage.write_file(path, blueprint, quantization=quantization, seed=seed, signs=signs)
    return path


def write_parts(
    arch: str, directory: Path, *, parts: int = 2, quantization: str = "f16", seed: int = 0, **shape_overrides: int
) -> list[Path]:
    """Write a tiny model split as llama-gguf-split does; part 1 is the one to pass to the server."""
    blueprint, signs = plan(arch, **shape_overrides)
    stem = _stem(arch, quantization, seed, shape_overrides)
    return storage.write_parts(
        directory, stem, blueprint, quantization=quantization, seed=seed, signs=signs, parts=parts
    )


def write_sparse(arch: str, directory: Path, *, quantization: str = "q4_k", **shape_overrides: int) -> Path:
    """Write a header of any size with a hole for the data: for the server's dry run (`--fit on -lv 4`), not to serve.

    It occupies some ten kilobytes on disk, has no vocabulary, and its apparent size is that of the whole model.
    """
    shape, build = _family(arch)
    shape = shape.with_overrides(shape_overrides)
    blueprint = build(arch, shape)
    blueprint.metadata.update(vocabulary.none())
    path = directory / f"{_stem(arch, quantization, 0, shape_overrides)}-sparse.gguf"
    storage.write_hole(path, blueprint, quantization=quantization)
    return path


def plan(arch: str, **shape_overrides: int) -> tuple[Blueprint, np.ndarray]:
    """The blueprint of a tiny model with its vocabulary, and the sign of each token (see `TensorPlan.fill`)."""
    shape, build = _family(arch)
    shape = shape.with_overrides(shape_overrides)
    blueprint = build(arch, shape)
    if arch.endswith("-projector"):
        return blueprint, np.empty(0, np.float32)
    words = vocabulary.for_architecture(arch, shape.n_vocab)
    blueprint.metadata.update(words.metadata())
    return blueprint, words.signs()


def shape_of(arch: str, **shape_overrides: int) -> Shape:
    """The shape that `write` gives a model."""
    return _family(arch)[0].with_overrides(shape_overrides)


def _stem(arch: str, quantization: str, seed: int, shape_overrides: dict[str, int]) -> str:
    """A file name without its suffix; other seeds and sizes get other names."""
    if not seed and not shape_overrides:
        return f"{arch}-{quantization}"
    text = repr((seed, sorted(shape_overrides.items())))
    return f"{arch}-{quantization}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _family(arch: str) -> tuple[Shape, Callable[[str, Shape], Blueprint]]:
    """Default shape and builder of an architecture."""
    if arch not in _FAMILIES:
        raise ValueError(f"no tiny model of architecture {arch!r}; there are {', '.join(_FAMILIES)}")
    return _FAMILIES[arch]
