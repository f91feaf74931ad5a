"""K/V, recurrent states and outputs, exact. Pure.

Source: llama.cpp llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp, and
llama-context.cpp (output_reserve).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from launcher.ir.architectures import at_layer
from launcher.ir.config import ArchitectureConfig, KvType
from launcher.ir.plan import RAM, Part, Settings
from launcher.plan.builds import rolled_back
from launcher.plan.memory.layout import Layers, divided, is_mla, key_length, layer_devices, pad, value_length

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
"""K/V type → bytes per block and values per block (ggml type traits)."""


def block_of(kind: KvType, settings: Settings) -> tuple[int, int]:
    """Bytes and values of a block of `kind`: llama.cpp's, or the engine's own; for an unknown one the widest."""
    own = {name: (size, values) for name, size, values in settings.cache_blocks}
    return ROW.get(kind) or own.get(kind) or ROW["f32"]


def row_bytes(kind: KvType, n: int, settings: Settings) -> int:
    """Bytes of `n` values of type `kind` (ggml_row_size)."""
    size, block = block_of(kind, settings)
    return -(-n // block) * size


def sliding_cells(arch: ArchitectureConfig, settings: Settings) -> int:
    """Cells per stream of sliding-window layers."""
    if settings.swa_full:
        return settings.n_ctx_seq
    window = arch.n_swa * (settings.slots if settings.kv_unified else 1) + settings.n_ubatch
    return pad(min(settings.n_ctx_seq, window))


def token_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings, layer: int, *, sliding: bool) -> int:
    """K and V bytes per token in `layer`. MLA keeps no V; without flash attention V is as wide as the widest."""
    heads = 1 if is_mla(arch) else at_layer(arch.n_head_kv, layer)
    k = row_bytes(settings.cache_type_k, heads * key_length(arch, sliding=sliding), settings)
    if is_mla(arch):
        return k
    v_heads = heads
    if not settings.flash_attention and isinstance(arch.n_head_kv, tuple):
        v_heads = max(at_layer(arch.n_head_kv, il) for il in (*kinds.full, *kinds.sliding))
    return k + row_bytes(settings.cache_type_v, v_heads * value_length(arch, sliding=sliding), settings)


def has_indexer(arch: ArchitectureConfig, layer: int) -> bool:
    """Whether `layer`, if it keeps K, also keeps a key for its indexer (llama-kv-cache-dsa.cpp)."""
    if not arch.indexer_key_length:
        return False
    return layer >= len(arch.indexer_types) or arch.indexer_types[layer]


def cells(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Cells of all caches together, for their host metadata."""
    full = settings.n_ctx_seq if kinds.full else 0
    full *= 2 if arch.indexer_key_length and any(has_indexer(arch, il) for il in kinds.full) else 1
    return (full + (sliding_cells(arch, settings) if kinds.sliding else 0)) * settings.streams


def kv_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """KV bytes per device: with the layer that owns them, or on the host without KV offload."""
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


F32 = 4


def conv_dim(arch: ArchitectureConfig) -> int:
    """Channels that the short convolution runs over."""
    return arch.ssm_d_inner + 2 * arch.ssm_n_group * arch.ssm_d_state


def state_bytes(arch: ArchitectureConfig) -> int:
    """One layer's state of one sequence: convolution history and SSM state (llama-hparams.cpp n_embd_r, n_embd_s).

    lfm2 keeps only the history of its short convolution.
    """
    if arch.shortconv_l_cache:
        return (arch.shortconv_l_cache - 1) * arch.n_embd * F32
    history = max(0, arch.ssm_d_conv - 1) * conv_dim(arch)
    return (history + arch.ssm_d_state * arch.ssm_d_inner) * F32


def recurrent_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """State bytes per device: one state per slot, and those kept for rolling back drafted tokens."""
    places = layer_devices(kinds.n_layer, settings)
    count = Counter(places[layer] if settings.kv_offload else RAM for layer in kinds.recurrent)
    one = state_bytes(arch) * settings.slots * (1 + rolled_back(arch, settings))
    sizes = {device: n * one for device, n in count.items()}
    for device, size in divided(sizes, settings, everywhere=False).items():
        yield Part(device=device, component="recurrent", committed=size)


NGRAM_DRAFT = {"simple": 48, "map-k": 48, "map-k4v": 48, "mod": 64, "cache": 8}
"""Tokens drafted ahead by n-gram speculation (common/speculative.cpp defaults)."""


def outputs_max(settings: Settings) -> int:
    """Most rows of logits per batch (n_outputs_max): per slot the sampled token and the drafted ones to verify."""
    if settings.embedding:
        return settings.n_batch
    ngram = settings.ngram
    drafted = max(settings.draft_n_max, (ngram.n_max or NGRAM_DRAFT[ngram.kind]) if ngram else 0)
    return min(settings.n_batch, settings.slots * (1 + drafted))


def output_part(arch: ArchitectureConfig, settings: Settings) -> Part:
    """One row per slot at start (and an embedding, when asked for); `later`: its growth."""
    row = arch.n_vocab * F32 + (arch.n_embd * F32 if settings.embedding else 0)
    later = row * max(0, outputs_max(settings) - settings.slots)
    return Part(device=RAM, component="output", committed=row * settings.slots, later=later)
