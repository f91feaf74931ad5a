"""What llama.cpp knows of an architecture without the file saying so. Pure.

Source: llama.cpp src/models/*.cpp (`load_arch_hparams`) and src/llama-model.cpp (`load_hparams`, `create_memory`).
"""

from __future__ import annotations

import msgspec

from launcher.ir.config import ArchitectureConfig

MAX_LAYERS = 4096
"""More layers than any model has; a bound for whoever walks over them."""

SLIDING_PERIOD = {
    "cohere2": 4,
    "cohere2moe": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma-embedding": 6,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "smallthinker": 4,
}
"""Period p of sliding-window layers (il % p < p-1 slides) where the file does not give it."""

SLIDING_DEFAULT = {"gemma2": 4096, "llama4": 8192}
"""Window of architectures that slide even where the file gives none."""

ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert", "eurobert"}
)
"""Architectures without an output matrix."""

GATED_DELTA = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""Gated delta net hybrids: recurrent unless (il + 1) % full_attention_interval == 0."""

SHARED_KV_FROM = {"gemma3n": 20}
"""First layer that reuses an earlier layer's KV, where the file does not give it."""


INDEXER_DEFAULT = {"deepseek32": (64, 128, 2048), "glm-dsa": (32, 128, 2048)}
"""Heads, width of a key and tokens chosen of the indexer, where a declaration gives none: as in every published model
of the architecture (config.json `index_n_heads`, `index_head_dim`, `index_topk`). A file must have them."""

GLM_5_2_CONTEXT = 1_048_576
"""glm-dsa models trained with so much share indexers (src/models/glm-dsa.cpp GLM_5_2_DEFAULT_INDEXER_TYPES)."""


def complete(architecture: ArchitectureConfig) -> ArchitectureConfig:
    """`architecture` with what llama.cpp derives: head sizes, expert width, sliding pattern, attention interval.

    A sliding window that llama.cpp does not use for this architecture (phi3, qwen2) is dropped: all layers keep the
    whole context.
    """
    a = architecture
    changes: dict[str, object] = {}
    heads = first_positive(a.n_head)
    if not a.key_length and heads:
        changes["key_length"] = a.n_embd // heads
    if not a.value_length and heads:
        changes["value_length"] = a.n_embd // heads
    if a.n_expert and not a.n_ff_exp:
        n_ff = first_positive(a.n_ff)
        changes["n_ff_exp"] = n_ff // max(1, a.n_expert_used) if a.arch in _SPLIT_EXPERTS else n_ff
    period = SLIDING_PERIOD.get(a.arch, 0)
    if not a.n_swa and a.arch in SLIDING_DEFAULT:
        changes["n_swa"] = SLIDING_DEFAULT[a.arch]
    if a.swa_pattern == 0 and (a.n_swa or "n_swa" in changes):
        changes |= {"swa_pattern": period} if period else {"n_swa": 0}
    if a.arch in GATED_DELTA and not a.full_attention_interval:
        changes["full_attention_interval"] = 4
    if a.arch in SHARED_KV_FROM and not a.n_layer_kv:
        changes["n_layer_kv"] = min(SHARED_KV_FROM[a.arch], a.n_layer)
    if a.arch in INDEXER_DEFAULT:
        names = ("indexer_n_head", "indexer_key_length", "indexer_top_k")
        changes |= {n: v for n, v in zip(names, INDEXER_DEFAULT[a.arch], strict=True) if not getattr(a, n)}
    if a.arch == "glm-dsa" and a.n_ctx_train >= GLM_5_2_CONTEXT and not a.indexer_types:
        changes["indexer_types"] = tuple(il < 2 or il % 4 == 2 for il in range(a.n_layer - a.n_layer_nextn))
    return msgspec.structs.replace(a, **changes) if changes else a


_SPLIT_EXPERTS = frozenset(
    {"qwen2moe", "qwen3moe", "qwen3vlmoe", "qwen3next", "qwen35moe", "glm4moe", "nemotron_h_moe", "dots1", "bailingmoe"}
)
"""Architectures whose expert width, when absent, is n_ff / n_expert_used; for others it is n_ff."""


def first_positive(value: int | tuple[int, ...]) -> int:
    """A scalar, or the first layer's value that is not zero; 0 when there is none."""
    if isinstance(value, int):
        return value
    return next((v for v in value if v), 0)


def at_layer(value: int | tuple[int, ...], layer: int) -> int:
    """The value for one layer of a scalar or a per-layer list; 0 beyond a list's end."""
    if isinstance(value, int):
        return value
    return value[layer] if layer < len(value) else 0


def is_recurrent(architecture: ArchitectureConfig, layer: int) -> bool:
    """Whether a layer keeps recurrent state instead of KV. Falcon-H1 keeps both; this says False for it.

    Source: `hparams.is_recr` of each architecture's `load_arch_hparams`.
    """
    a = architecture
    if a.arch in GATED_DELTA:
        interval = a.full_attention_interval or 4
        return layer < a.n_layer - a.n_layer_nextn and (layer + 1) % interval != 0
    if a.arch in {"granitehybrid", "lfm2", "lfm2moe", "jamba"}:
        return at_layer(a.n_head_kv, layer) == 0
    if a.arch in {"nemotron_h", "nemotron_h_moe"}:
        return at_layer(a.n_head_kv, layer) == 0 and at_layer(a.n_ff, layer) == 0
    return a.arch in {"mamba", "mamba2"}
