"""A file for a server's dry run: a model's header, and a hole of the length of its data. I/O.

llama-server's `no_alloc` pass reads the header and needs the file to be as long as the header says; it reads no weight.
Such a file takes 20-200 kB of disk, whatever its length. It has no vocabulary, so it cannot be served.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from launcher.catalog.architecture import POOLING, SCALAR_KEYS
from launcher.catalog.ggml_types import BY_NAME
from launcher.ir.architectures import complete, traits
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig

Value = bool | int | float | str | tuple[int, ...] | tuple[bool, ...]

_ALIGNMENT = 32
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
"""GGUF value types (gguf.h `enum gguf_type`)."""
_GRANITE_SCALES = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")


def write_sparse(model: ModelFile, path: Path) -> None:
    """Write the header of `model` at `path` and extend the file to its length, without allocating blocks.

    A split model becomes one file: the dry run adds up tensors, whatever file they are in. Raises OSError.
    """
    header, length = sparse_header(model)
    path.write_bytes(header)
    os.truncate(path, len(header) + length)


def sparse_header(model: ModelFile) -> tuple[bytes, int]:
    """Header bytes, padded to where data begin, and the bytes of data that must follow. Pure."""
    keys = {"general.architecture": model.architecture.arch, **dict(_keys(model.architecture))}
    out = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(model.tensors), len(keys)))
    for name, value in keys.items():
        out += _string(name) + _value(value)
    offset = 0
    for tensor in model.tensors:
        out += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        out += struct.pack("<IQ", BY_NAME[tensor.type].id, offset)
        offset += _padded(tensor.size_bytes)
    return bytes(out.ljust(_padded(len(out)), b"\0")), offset


def _keys(architecture: ArchitectureConfig) -> Iterator[tuple[str, Value]]:
    """Metadata that the loader asks for, by whole names; values that do not decide memory are the usual ones."""
    a = complete(architecture)
    at = f"{a.arch}."
    n_ff = a.n_ff_exp if traits(a.arch).expert_width_of_n_ff and a.n_expert else a.n_ff
    yield at + "context_length", a.n_ctx_train
    yield at + "embedding_length", a.n_embd
    yield at + "block_count", a.n_layer
    yield at + "feed_forward_length", n_ff
    yield at + "attention.head_count", a.n_head
    yield at + "attention.head_count_kv", a.n_head_kv
    yield at + "attention.layer_norm_rms_epsilon", 1e-6
    yield at + "attention.layer_norm_epsilon", 1e-5
    yield at + "attention.causal", a.causal
    yield at + "rope.freq_base", 10000.0
    if a.pooling in POOLING:
        yield at + "pooling_type", POOLING.index(a.pooling)
    yield at + "vocab_size", a.n_vocab
    yield "tokenizer.ggml.model", "none"
    if a.n_token_types:
        yield "tokenizer.ggml.token_type_count", a.n_token_types
    for field, key in SCALAR_KEYS.items():
        if getattr(a, field):
            yield at + key, getattr(a, field)
    if a.n_expert:
        yield at + "expert_used_count", a.n_expert_used
        yield at + "expert_feed_forward_length", a.n_ff_exp
        yield at + "expert_weights_scale", 1.0
        yield at + "expert_weights_norm", True
    yield from _peculiar(a)


def _peculiar(a: ArchitectureConfig) -> Iterator[tuple[str, Value]]:
    at = f"{a.arch}."
    if a.n_expert and traits(a.arch).sigmoid_router:
        yield at + "expert_gating_func", 2
    if a.n_expert and not a.n_expert_shared and a.n_ff_shexp and a.n_ff_exp:
        yield at + "expert_shared_count", max(1, a.n_ff_shexp // a.n_ff_exp)
    if a.n_swa and a.swa_pattern != traits(a.arch).sliding_period:
        yield at + "attention.sliding_window_pattern", a.swa_pattern
    if a.n_layer_kv and a.n_layer_kv != min(traits(a.arch).shared_kv_from, a.n_layer):
        yield at + "attention.shared_kv_layers", a.n_layer - a.n_layer_kv
    if a.indexer_types:
        yield at + "attention.indexer.types", tuple(map(int, a.indexer_types))
    if traits(a.arch).sectioned_rope:
        width = a.rope_dim or a.key_length
        yield at + "rope.dimension_sections", (width // 8, width * 3 // 16, width * 3 // 16, 0)
    if a.arch.startswith("granite"):
        yield from ((at + scale, 1.0) for scale in _GRANITE_SCALES)


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if value and all(isinstance(v, bool) for v in value):
        return struct.pack(f"<IIQ{len(value)}?", _ARRAY, _BOOL, len(value), *value)
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
