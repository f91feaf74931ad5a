"""The KV cache, exact. Source: llama-kv-cache.cpp and llama-kv-cache-iswa.cpp constructors. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from launcher.ir.config import ArchitectureConfig, KvType
from launcher.plan.memory.context import pad
from launcher.plan.memory.layers import Layers, at, is_mla, key_length, value_length
from launcher.plan.memory.parts import Part
from launcher.plan.memory.placement import layer_devices
from launcher.plan.settings import RAM, Settings

ROW = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
"""K/V type → bytes of a block and values in it (ggml type traits)."""


def row_bytes(kind: KvType, n: int) -> int:
    """Bytes of `n` values of type `kind` (ggml_row_size)."""
    size, block = ROW[kind]
    return -(-n // block) * size


def sliding_cells(arch: ArchitectureConfig, settings: Settings) -> int:
    """Cells a stream of sliding-window layers."""
    if settings.swa_full:
        return settings.n_ctx_seq
    window = arch.n_swa * (settings.slots if settings.kv_unified else 1) + settings.n_ubatch
    return pad(min(settings.n_ctx_seq, window))


def token_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings, layer: int, *, sliding: bool) -> int:
    """K and V bytes of one token in `layer`. MLA keeps no V; without flash attention V is as wide as the widest."""
    heads = 1 if is_mla(arch) else at(arch.n_head_kv, layer)
    k = row_bytes(settings.cache_type_k, heads * key_length(arch, sliding=sliding))
    if is_mla(arch):
        return k
    v_heads = heads
    if not settings.flash_attention and isinstance(arch.n_head_kv, tuple):
        v_heads = max(at(arch.n_head_kv, il) for il in (*kinds.full, *kinds.sliding))
    return k + row_bytes(settings.cache_type_v, v_heads * value_length(arch, sliding=sliding))


def cells(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Cells of all caches together, for their host metadata."""
    full = settings.n_ctx_seq if kinds.full else 0
    return (full + (sliding_cells(arch, settings) if kinds.sliding else 0)) * settings.streams


def kv_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """KV bytes by device: with the layer that owns them, or on the host without KV offload."""
    places = layer_devices(kinds.n_layer, settings)
    totals: defaultdict[str, int] = defaultdict(int)
    per_full = settings.n_ctx_seq * settings.streams
    per_sliding = sliding_cells(arch, settings) * settings.streams
    for layer in kinds.full:
        place = places[layer] if settings.kv_offload else RAM
        totals[place] += token_bytes(arch, kinds, settings, layer, sliding=False) * per_full
    for layer in kinds.sliding:
        place = places[layer] if settings.kv_offload else RAM
        totals[place] += token_bytes(arch, kinds, settings, layer, sliding=True) * per_sliding
    for device, size in totals.items():
        yield Part(device=device, component="kv", committed=size)
