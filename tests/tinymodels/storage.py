"""Blueprints to GGUF files: whole, split in parts, or sparse (real header, a hole for the data)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from .blueprint import Blueprint, TensorPlan, Value

TYPES = {name.lower(): kind for name, kind in gguf.GGMLQuantizationType.__members__.items()}


def write_file(path: Path, blueprint: Blueprint, *, quantization: str, seed: int, signs: np.ndarray) -> None:
    """Write a whole model: the same arguments give the same bytes."""
    writer = _writer(path, blueprint)
    for plan in blueprint.tensors:
        kind = tensor_type(plan, quantization)
        data = gguf.quants.quantize(plan.fill(seed, signs), kind)
        writer.add_tensor(plan.name, data, raw_dtype=kind)
    _close(writer, with_data=True)


def write_hole(path: Path, blueprint: Blueprint, *, quantization: str) -> None:
    """Write header and tensor infos, then extend the file to its right length without allocating blocks."""
    writer = _writer(path, blueprint)
    length = 0
    for plan in blueprint.tensors:
        kind = tensor_type(plan, quantization)
        size = tensor_bytes(plan, kind)
        writer.add_tensor_info(plan.name, tuple(reversed(plan.shape)), np.dtype(np.float32), size, raw_dtype=kind)
        length += gguf.GGUFWriter.ggml_pad(size, writer.data_alignment)
    _close(writer, with_data=False)
    header = gguf.GGUFWriter.ggml_pad(path.stat().st_size, writer.data_alignment)
    os.truncate(path, header + length)


def write_parts(
    directory: Path, stem: str, blueprint: Blueprint, *, quantization: str, seed: int, signs: np.ndarray, parts: int
) -> list[Path]:
    """Write a split model `stem-0000i-of-0000n.gguf`; every part has the split keys, part 1 all the others too."""
    share = -(-len(blueprint.tensors) // parts)
    paths = []
    for i in range(parts):
        part = Blueprint(
            architecture=blueprint.architecture,
            metadata=dict(blueprint.metadata) if i == 0 else {},
            tensors=blueprint.tensors[i * share : (i + 1) * share],
        )
        path = directory / f"{stem}-{i + 1:05d}-of-{parts:05d}.gguf"
        writer = _writer(path, part)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(blueprint.tensors))
        for plan in part.tensors:
            kind = tensor_type(plan, quantization)
            writer.add_tensor(plan.name, gguf.quants.quantize(plan.fill(seed, signs), kind), raw_dtype=kind)
        _close(writer, with_data=True)
        paths.append(path)
    return paths


def tensor_type(plan: TensorPlan, quantization: str) -> gguf.GGMLQuantizationType:
    """The type that a tensor gets: f32 unless it is a matrix of the multiplications, f16 where blocks do not fit."""
    if not plan.quantised or len(plan.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if quantization not in TYPES:
        raise ValueError(f"no GGML type {quantization!r}; known: {', '.join(TYPES)}")
    block, _ = gguf.GGML_QUANT_SIZES[TYPES[quantization]]
    return TYPES[quantization] if plan.shape[0] % block == 0 else gguf.GGMLQuantizationType.F16


def tensor_bytes(plan: TensorPlan, kind: gguf.GGMLQuantizationType) -> int:
    """Bytes of a tensor: elements / block · type size (ggml.c ggml_nbytes)."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return plan.elements // block * size


def _writer(path: Path, blueprint: Blueprint) -> gguf.GGUFWriter:
    """A writer with all metadata in it."""
    writer = gguf.GGUFWriter(path, blueprint.architecture)
    writer.add_name(f"tiny {blueprint.architecture}")
    for key, value in blueprint.metadata.items():
        _put(writer, key, value)
    return writer


def _put(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """Add one key with the GGUF type that converters give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Sequence):
        writer.add_array(key, value)


def _close(writer: gguf.GGUFWriter, *, with_data: bool) -> None:
    """Write what the writer holds and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if with_data:
        writer.write_tensors_to_file()
    else:
        writer.write_ti_data_to_file()
    writer.close()
