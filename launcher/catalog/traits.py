"""What llama.cpp knows of an architecture without the file saying so. Pure.

Source: llama.cpp src/models/*.cpp (`load_arch_hparams`) and src/llama-model.cpp (`load_hparams`, `create_memory`).
"""

from __future__ import annotations

import msgspec

from launcher.ir.architectures import at_layer, traits
from launcher.ir.config import ArchitectureConfig

MAX_LAYERS = 4096
"""More layers than any model has; a bound for whoever walks over them."""

GLM_5_2_CONTEXT = 1_048_576
"""glm-dsa models trained with so much share indexers (src/models/glm-dsa.cpp GLM_5_2_DEFAULT_INDEXER_TYPES)."""


def complete(architecture: ArchitectureConfig) -> ArchitectureConfig:
    """`architecture` with what llama.cpp derives: head sizes, expert width, sliding pattern, attention interval.

    A sliding window that llama.cpp does not use for this architecture (phi3, qwen2) is dropped: all layers keep the
    whole context.
    """
    a, known = architecture, traits(architecture.arch)
    changes: dict[str, object] = {}
    heads = first_positive(a.n_head)
    if not a.key_length and heads:
        changes["key_length"] = a.n_embd // heads
    if not a.value_length and heads:
        changes["value_length"] = a.n_embd // heads
    if a.n_expert and not a.n_ff_exp:
        n_ff = first_positive(a.n_ff)
        changes["n_ff_exp"] = n_ff // max(1, a.n_expert_used) if known.expert_width_of_used else n_ff
    if not a.n_swa and known.sliding_window:
        changes["n_swa"] = known.sliding_window
    if a.swa_pattern == 0 and (a.n_swa or "n_swa" in changes):
        changes |= {"swa_pattern": known.sliding_period} if known.sliding_period else {"n_swa": 0}
    if known.recurrent == "by interval" and not a.full_attention_interval:
        changes["full_attention_interval"] = 4
    if known.shared_kv_from and not a.n_layer_kv:
        changes["n_layer_kv"] = min(known.shared_kv_from, a.n_layer)
    if known.indexer is not None:
        names = ("indexer_n_head", "indexer_key_length", "indexer_top_k")
        changes |= {n: v for n, v in zip(names, known.indexer, strict=True) if not getattr(a, n)}
    if a.arch == "glm-dsa" and a.n_ctx_train >= GLM_5_2_CONTEXT and not a.indexer_types:
        changes["indexer_types"] = tuple(il < 2 or il % 4 == 2 for il in range(a.n_layer - a.n_layer_nextn))
    return msgspec.structs.replace(a, **changes) if changes else a


def first_positive(value: int | tuple[int, ...]) -> int:
    """A scalar, or the first layer's value that is not zero; 0 when there is none."""
    if isinstance(value, int):
        return value
    return next((v for v in value if v), 0)


def is_recurrent(architecture: ArchitectureConfig, layer: int) -> bool:
    """Whether a layer keeps recurrent state instead of KV. Falcon-H1 keeps both; this says False for it.

    Source: `hparams.is_recr` of each architecture's `load_arch_hparams`.
    """
    a, kind = architecture, traits(architecture.arch).recurrent
    if kind == "by interval":
        interval = a.full_attention_interval or 4
        return layer < a.n_layer - a.n_layer_nextn and (layer + 1) % interval != 0
    if kind in ("without heads", "without heads or width"):
        return at_layer(a.n_head_kv, layer) == 0 and (kind == "without heads" or at_layer(a.n_ff, layer) == 0)
    return kind == "all"
