"""What is known of each model architecture of llama.cpp beside what a file says: one row each. Pure.

A new architecture is a row here, its tensors in `launcher/catalog/layouts.py`, and a tiny model in `tests/tinymodels`.

Sources: llama.cpp src/models/*.cpp (`load_arch_hparams`, `load_arch_tensors`), src/llama-model.cpp (`load_hparams`,
`create_memory`), src/llama-arch.cpp; what builds differ in: dry runs of b10068, b10092, b10434 and b11434.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec.structs import replace

from launcher.ir.config import ArchitectureConfig

MAMBA = ("ssm_d_conv", "ssm_d_inner", "ssm_d_state", "ssm_n_group", "ssm_dt_rank")
LATENT = ("kv_lora_rank", "rope_dim", "key_length_mla", "value_length_mla")


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one architecture; the defaults are those of a plain transformer."""

    compared: bool = False
    """Its tensors are known, and the bound on its compute buffers was compared with real servers."""
    is_encoder: bool = False
    """An encoder: it makes embeddings, keeps no K/V, and has no output matrix."""
    embeds_only: bool = False
    """It makes embeddings only, though it is no encoder."""
    keeps_kv: bool = True
    """False for a diffusion model, or one that only embeds."""
    is_mixture: bool = False
    """A mixture of experts, always."""
    recurrent: Literal["", "all", "by interval", "without heads", "without heads or width"] = ""
    """Which layers keep a state instead of K/V (`hparams.is_recr`): all; those but each `full_attention_interval`-th;
    those without K/V heads; those without K/V heads and without a feed-forward."""
    needs: tuple[str, ...] = ()
    """Hyper-parameters that a declaration must give, beside those that every architecture needs."""
    lists: tuple[str, ...] = ()
    """Hyper-parameters that must be lists per layer, because they say which layers are recurrent."""
    sliding_period: int = 0
    """Layer il slides where il % period < period - 1, if the file has no pattern; 0: none slides."""
    sliding_window: int = 0
    """The window size, if the file gives none."""
    shared_kv_from: int = 0
    """First layer that reuses an earlier one's K/V, if the file does not say."""
    indexer: tuple[int, int, int] | None = None
    """Sparse attention: heads, width of a key and tokens chosen of its indexer, where a declaration gives none: as in
    every published model (config.json `index_n_heads`, `index_head_dim`, `index_topk`). A file must have them."""
    expert_width_of_used: bool = False
    """An absent expert width is n_ff / n_expert_used; in other architectures n_ff."""
    expert_width_of_n_ff: bool = False
    """The loader takes the experts' width from feed_forward_length."""
    sigmoid_router: bool = False
    sectioned_rope: bool = False
    streams: int = 1
    """Rows of the residual stream, if the file does not say."""
    qk_norm: bool = False
    """Q and K are always normalised per head."""
    sandwich_norms: bool = False
    """There are norms after attention and feed-forward, too."""
    gates_shared_expert: bool = False
    norm_at_embedding: bool = False
    """The output norm is called token_embd_norm."""
    nextn_vocabulary: bool = False
    """Next-token-prediction layers have their own embedding and output matrix."""
    gated_query: bool = False
    """attn_q is twice as wide."""
    delta_net: bool = False
    """Recurrent layers are gated delta nets; elsewhere Mamba-like."""
    ungated: int = 0
    """Matrices of the inner width in a feed-forward without a gate; 0: with one: gate, up and their product."""
    both_mixers: bool = False
    """Attention and Mamba in one layer: what the first leaves is kept beside the second, and above the feed-forward."""
    embeds_without_logits: bool = False
    """Its embedding servers compute no logits; those of other causal models do."""
    many_nodes: bool = False
    """Its graphs have more nodes than others', for which a process reserves memory."""
    always_loads_nextn: bool = False
    """Next-token-prediction layers were always loaded, before `draft-mtp` alone loaded them."""
    no_nextn_until: int = 0
    """The last build known not to load such layers, even for `draft-mtp`."""
    splits_tensors: bool = True
    """False: builds up to b11434 refuse `--split-mode tensor` (llm_arch_supports_sm_tensor)."""
    rolls_back: bool = False
    """Drafted tokens are rolled back to kept recurrent states (llm_arch_supports_rs_rollback)."""

    @property
    def writes(self) -> bool:
        """Whether it generates text, not only embeddings."""
        return not (self.is_encoder or self.embeds_only)


def at_layer(value: int | tuple[int, ...], layer: int) -> int:
    """The value for one layer of a scalar or a per-layer list; 0 beyond a list's end."""
    if isinstance(value, int):
        return value
    return value[layer] if layer < len(value) else 0


def traits(name: str) -> Traits:
    """The facts of architecture `name`; for an unknown one those of a plain transformer."""
    return ARCHITECTURES.get(name, _PLAIN)


_PLAIN = Traits()

# what several of the rows share
_LATENT_SPARSE = Traits(
    compared=True,
    is_mixture=True,
    needs=(*LATENT, "q_lora_rank"),
    indexer=(64, 128, 2048),
    nextn_vocabulary=True,
    sigmoid_router=True,
    no_nextn_until=10092,
    splits_tensors=False,
)
_SHORT_CONVOLUTION = Traits(
    compared=True,
    recurrent="without heads",
    needs=("shortconv_l_cache",),
    lists=("n_head_kv",),
    norm_at_embedding=True,
    embeds_without_logits=True,
    rolls_back=True,
)
_NEMOTRON_H = Traits(
    compared=True,
    recurrent="without heads or width",
    needs=MAMBA,
    lists=("n_head_kv", "n_ff"),
    ungated=2,
    splits_tensors=False,
    rolls_back=True,
)
_GATED_DELTA = Traits(
    compared=True, recurrent="by interval", needs=MAMBA, delta_net=True, gated_query=True, many_nodes=True
)
_QWEN35 = replace(_GATED_DELTA, sectioned_rope=True, always_loads_nextn=True, rolls_back=True)
ARCHITECTURES: Mapping[str, Traits] = MappingProxyType(
    {
        "bailingmoe": Traits(expert_width_of_used=True),
        "bailingmoe3": Traits(rolls_back=True),
        "bert": Traits(compared=True, is_encoder=True, needs=("n_token_types",), ungated=1),
        "bitnet": Traits(splits_tensors=False),
        "cohere2": Traits(sliding_period=4),
        "cohere2moe": Traits(sliding_period=4),
        "deepseek2": Traits(
            compared=True,
            is_mixture=True,
            needs=LATENT,
            nextn_vocabulary=True,
            sigmoid_router=True,
            splits_tensors=False,
        ),
        "deepseek32": _LATENT_SPARSE,
        "deepseek4": Traits(many_nodes=True, rolls_back=True),
        "dots1": Traits(expert_width_of_used=True),
        "dream": Traits(keeps_kv=False),
        "eurobert": Traits(is_encoder=True),
        "exaone4": Traits(sliding_period=4),
        "falcon-h1": Traits(compared=True, needs=MAMBA, both_mixers=True, splits_tensors=False),
        "gemma": Traits(compared=True),
        "gemma-embedding": Traits(
            compared=True, embeds_only=True, keeps_kv=False, sliding_period=6, qk_norm=True, sandwich_norms=True
        ),
        "gemma2": Traits(compared=True, sliding_period=2, sliding_window=4096, sandwich_norms=True),
        "gemma3": Traits(compared=True, sliding_period=6, qk_norm=True, sandwich_norms=True),
        "gemma3n": Traits(sliding_period=5, shared_kv_from=20, streams=4, splits_tensors=False),
        "glm-dsa": replace(_LATENT_SPARSE, indexer=(32, 128, 2048)),
        "glm4moe": Traits(
            compared=True,
            is_mixture=True,
            nextn_vocabulary=True,
            sigmoid_router=True,
            no_nextn_until=10434,
            expert_width_of_used=True,
        ),
        "glm5-next": Traits(rolls_back=True),
        "gpt-oss": Traits(compared=True, is_mixture=True, sliding_period=2),
        "granite": Traits(compared=True),
        "granitehybrid": Traits(
            compared=True,
            recurrent="without heads",
            needs=MAMBA,
            lists=("n_head_kv",),
            expert_width_of_n_ff=True,
            splits_tensors=False,
        ),
        "granitemoe": Traits(compared=True, is_mixture=True, expert_width_of_n_ff=True),
        "grok": Traits(splits_tensors=False),
        "jamba": Traits(recurrent="without heads", splits_tensors=False),
        "jina-bert-v2": Traits(is_encoder=True),
        "jina-bert-v3": Traits(is_encoder=True),
        "kimi-k3": Traits(rolls_back=True),
        "kimi-linear": Traits(delta_net=True, many_nodes=True, splits_tensors=False),
        "lfm2": _SHORT_CONVOLUTION,
        "lfm2moe": replace(_SHORT_CONVOLUTION, is_mixture=True, sigmoid_router=True),
        "llada": Traits(keeps_kv=False),
        "llada-moe": Traits(keeps_kv=False),
        "llama": Traits(compared=True),
        "llama4": Traits(sliding_period=4, sliding_window=8192),
        "mamba": Traits(recurrent="all", splits_tensors=False),
        "mamba2": Traits(recurrent="all", splits_tensors=False),
        "minicpm3": Traits(splits_tensors=False),
        "minimax-m2": Traits(splits_tensors=False),
        "minimax-m3": Traits(many_nodes=True, splits_tensors=False),
        "mistral3": Traits(compared=True),
        "mistral4": Traits(splits_tensors=False),
        "modern-bert": Traits(is_encoder=True),
        "mpt": Traits(splits_tensors=False),
        "nemotron_h": _NEMOTRON_H,
        "nemotron_h_moe": replace(_NEMOTRON_H, is_mixture=True, sigmoid_router=True, expert_width_of_used=True),
        "neo-bert": Traits(is_encoder=True),
        "nomic-bert": Traits(is_encoder=True),
        "nomic-bert-moe": Traits(is_encoder=True),
        "olmo2": Traits(compared=True, sliding_period=4, splits_tensors=False),
        "olmoe": Traits(splits_tensors=False),
        "phi3": Traits(compared=True),
        "plamo2": Traits(splits_tensors=False),
        "qwen2": Traits(compared=True),
        "qwen2moe": Traits(compared=True, is_mixture=True, gates_shared_expert=True, expert_width_of_used=True),
        "qwen2vl": Traits(compared=True, sectioned_rope=True),
        "qwen3": Traits(compared=True, qk_norm=True),
        "qwen35": _QWEN35,
        "qwen35moe": replace(_QWEN35, is_mixture=True, expert_width_of_used=True),
        "qwen3moe": Traits(compared=True, is_mixture=True, qk_norm=True, expert_width_of_used=True),
        "qwen3next": replace(_GATED_DELTA, is_mixture=True, expert_width_of_used=True),
        "qwen3vl": Traits(compared=True, qk_norm=True, sectioned_rope=True),
        "qwen3vlmoe": Traits(
            compared=True, is_mixture=True, qk_norm=True, sectioned_rope=True, expert_width_of_used=True
        ),
        "qwen4exp": Traits(rolls_back=True),
        "rnd1": Traits(keeps_kv=False),
        "smallthinker": Traits(sliding_period=4),
        "t5": Traits(splits_tensors=False),
    }
)
"""Keyed by `general.architecture`."""


MAX_LAYERS = 4096
"""More layers than any model has: a bound on loops over layers."""

GLM_5_2_CONTEXT = 1_048_576
"""glm-dsa models with this training context share indexers (src/models/glm-dsa.cpp GLM_5_2_DEFAULT_INDEXER_TYPES)."""


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
        changes["indexer_types"] = tuple(il < 2 or il % 4 == 2 for il in range(trunk(a)))
    return replace(a, **changes) if changes else a


def first_positive(value: int | tuple[int, ...]) -> int:
    """A scalar, or the first layer's value that is not zero; 0 when there is none."""
    if isinstance(value, int):
        return value
    return next((v for v in value if v), 0)


def trunk(architecture: ArchitectureConfig) -> int:
    """Layers without those at the end that only predict further tokens (MTP)."""
    return max(0, architecture.n_layer - architecture.n_layer_nextn)


def slides(architecture: ArchitectureConfig, layer: int) -> bool:
    """Whether `layer` sees only the last n_swa tokens."""
    a = architecture
    if not a.n_swa:
        return False
    if isinstance(a.swa_pattern, tuple):
        return layer < len(a.swa_pattern) and a.swa_pattern[layer]
    period = a.swa_pattern or traits(a.arch).sliding_period
    return period > 0 and layer % period < period - 1


def is_recurrent(architecture: ArchitectureConfig, layer: int) -> bool:
    """Whether a layer keeps recurrent state instead of KV. Falcon-H1 keeps both; this says False for it.

    Source: `hparams.is_recr` of each architecture's `load_arch_hparams`.
    """
    a, kind = architecture, traits(architecture.arch).recurrent
    if kind == "by interval":
        return layer < trunk(a) and (layer + 1) % (a.full_attention_interval or 4) != 0
    if kind in ("without heads", "without heads or width"):
        return at_layer(a.n_head_kv, layer) == 0 and (kind == "without heads" or at_layer(a.n_ff, layer) == 0)
    return kind == "all"
