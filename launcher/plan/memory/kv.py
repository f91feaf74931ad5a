"""The KV cache, exact. Source: llama-kv-cache.cpp and llama-kv-cache-iswa.cpp constructors. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from launcher.ir.config import ArchitectureConfig, KvType
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.memory.context import pad
from launcher.plan.memory.layer_kinds import Layers, at, is_mla, key_length, value_length
from launcher.plan.memory.placement import divided, layer_devices

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


def block_of(kind: KvType, settings: Settings) -> tuple[int, int]:
    """Bytes of a block of `kind` and values in it: llama.cpp's own, or as the engine names it; of none the widest."""
    own = {name: (size, values) for name, size, values in settings.cache_blocks}
    return ROW.get(kind) or own.get(kind) or ROW["f32"]


def row_bytes(kind: KvType, n: int, settings: Settings) -> int:
    """Bytes of `n` values of type `kind` (ggml_row_size)."""
    size, block = block_of(kind, settings)
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
    k = row_bytes(settings.cache_type_k, heads * key_length(arch, sliding=sliding), settings)
    if is_mla(arch):
        return k
    v_heads = heads
    if not settings.flash_attention and isinstance(arch.n_head_kv, tuple):
        v_heads = max(at(arch.n_head_kv, il) for il in (*kinds.full, *kinds.sliding))
    return k + row_bytes(settings.cache_type_v, v_heads * value_length(arch, sliding=sliding), settings)


def has_indexer(arch: ArchitectureConfig, layer: int) -> bool:
    """Whether `layer`, if it keeps K, keeps a key for an indexer of its own, too (llama-kv-cache-dsa.cpp)."""
    if not arch.indexer_key_length:
        return False
    return layer >= len(arch.indexer_types) or arch.indexer_types[layer]


def cells(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Cells of all caches together, for their host metadata."""
    full = settings.n_ctx_seq if kinds.full else 0
    full *= 2 if any(has_indexer(arch, il) for il in kinds.full) else 1
    return (full + (sliding_cells(arch, settings) if kinds.sliding else 0)) * settings.streams


def kv_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """KV bytes by device: with the layer that owns them, or on the host without KV offload."""
    places = layer_devices(kinds.n_layer, settings)
    totals: defaultdict[str, int] = defaultdict(int)
    per_full = settings.n_ctx_seq * settings.streams
    per_sliding = sliding_cells(arch, settings) * settings.streams
    alike = isinstance(arch.n_head_kv, int)
    for layers, cells_each, sliding in ((kinds.full, per_full, False), (kinds.sliding, per_sliding, True)):
        size = token_bytes(arch, kinds, settings, layers[0], sliding=sliding) if layers else 0
        for layer in layers:
            place = places[layer] if settings.kv_offload else RAM
            own = size if alike else token_bytes(arch, kinds, settings, layer, sliding=sliding)
            totals[place] += own * cells_each
    for layer in kinds.full if arch.indexer_key_length else ():
        if has_indexer(arch, layer):
            place = places[layer] if settings.kv_offload else RAM
            totals[place] += row_bytes(settings.cache_type_k, arch.indexer_key_length, settings) * per_full
    for device, size in divided(totals, settings, everywhere=False).items():
        yield Part(device=device, component="kv", committed=size)
