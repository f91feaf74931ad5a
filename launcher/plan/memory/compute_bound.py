"""Compute buffers where the graph is not simulated: a bound, from the largest set of values live at once. Pure.

Fitted to dry runs on a CPU. On other dimensions the allocator's fragmentation makes it up to 19 % too low without
`with_margin`, so the margin is part of the figure, not decoration.
"""

from __future__ import annotations

import msgspec

from launcher.ir.config import ArchitectureConfig
from launcher.plan.memory.context import pad
from launcher.plan.memory.kv import sliding_cells
from launcher.plan.memory.layers import Layers, is_mla, key_length, value_length, widest
from launcher.plan.memory.output import outputs_max
from launcher.plan.memory.recurrent import conv_dim
from launcher.plan.settings import Settings
from launcher.sizes import MIB

SWEPT = frozenset(
    {
        "llama",
        "qwen2",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3next",
        "gemma3",
        "gpt-oss",
        "granite",
        "granitehybrid",
        "nemotron_h",
        "nemotron_h_moe",
        "deepseek2",
        "qwen3vlmoe",
        "qwen35moe",
        "bert",
    }
)
"""Architectures that the formulas were compared with."""
DELTA_NET = frozenset({"qwen3next", "qwen35", "qwen35moe", "kimi-linear"})
"""Recurrent layers are gated delta nets; elsewhere Mamba-like."""
GATED_QUERY = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""attn_q is twice as wide."""
F32 = 4
INPUTS = 24
"""Values a token of the graph's inputs: tokens, positions, outputs, K/V indices."""
INPUTS_BASE = 16 * 1024
V_INDEX = 8
"""Bytes of an index into the V cache, which without flash attention is transposed: one for every value of a token."""
ROTATED = 16
"""Further values a token where K/V are quantised, beside the matrix that rotates them."""
NEMOTRON = frozenset({"nemotron_h", "nemotron_h_moe"})
"""No gate beside the up projection."""
SANDWICH_NORMS = frozenset({"gemma2", "gemma3", "gemma3n", "gemma-embedding"})
"""Norms on both sides of each half; the queries stay with quantised K/V and without flash attention."""
NO_QUERY_LEFTOVER = frozenset({"granitehybrid"})
"""Mixtures of experts whose largest feed-forward follows a recurrent layer; the router's output stays."""
QUANTISED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})


class ComputeBound(msgspec.Struct, frozen=True, kw_only=True):
    """Without margin: masks, the largest phase of a graph, inputs, and one row of activations (E·u·4)."""

    masks: int
    phase: int
    inputs: int
    row: int

    @property
    def whole(self) -> int:
        """The buffer of a backend that computes everything."""
        return self.masks + self.phase + self.inputs


def with_margin(arch: ArchitectureConfig, size: int) -> int:
    """`size` plus 10 % and 16 MiB on architectures that were swept, 30 % and 16 MiB on others.

    Without the margin, dimensions outside the fit came out as much as 19 % under (docs/memory.md).
    """
    if arch.arch in SWEPT:
        return size + size // 10 + 16 * MIB
    return size + size * 30 // 100 + 16 * MIB


def micro_batch(settings: Settings) -> int:
    """Tokens of the reserved worst-case graph: rounded up to a multiple of the slots."""
    return pad(min(settings.n_ctx, settings.n_ubatch), settings.slots)


def head_width(arch: ArchitectureConfig) -> int:
    """Width of all query heads together."""
    head = arch.key_length_mla if is_mla(arch) else key_length(arch)
    return widest(arch.n_head) * head * (2 if arch.arch in GATED_QUERY else 1)


def quantised(settings: Settings) -> bool:
    """Whether K or V are kept in blocks."""
    return bool({settings.cache_type_k, settings.cache_type_v} & QUANTISED)


def compute_bound(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> ComputeBound:
    """Masks + the largest of feed-forward, attention, recurrent and logits + what only inputs take."""
    u = micro_batch(settings)
    phase = max(phases(arch, kinds, settings, u).values())
    if kinds.recurrent and not settings.flash_attention:
        phase += phase // 5  # fragmentation that no term explains: up to a fifth, found by dry runs
    inputs = u * INPUTS * F32 + INPUTS_BASE + (MIB // 2 if kinds.recurrent else 0)
    if quantised(settings) and not is_mla(arch):
        inputs += (key_length(arch) ** 2 + u * ROTATED) * F32
    if not settings.flash_attention and not is_mla(arch):
        caches = bool(kinds.full) + bool(kinds.sliding)
        inputs += caches * u * V_INDEX * widest(arch.n_head_kv) * value_length(arch)
    return ComputeBound(masks=_masks(arch, kinds, settings, u), phase=phase, inputs=inputs, row=arch.n_embd * u * F32)


def phases(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> dict[str, int]:
    """Bytes that are live at once in each part of the graph, for a micro-batch of `u` tokens."""
    if not arch.causal and not (kinds.full or kinds.sliding or kinds.recurrent):
        return {"feed_forward": _encoder(arch, settings, u)}
    return {
        "feed_forward": u * F32 * _feed_forward(arch, settings),
        "attention": _attention(arch, kinds, settings, u),
        "recurrent": _recurrent(arch, kinds, settings, u),
        "logits": min(u, outputs_max(settings)) * arch.n_vocab * F32 + 4 * arch.n_embd * u * F32,
    }


def _encoder(arch: ArchitectureConfig, settings: Settings, u: int) -> int:
    """BERT-like: no gate, no logits; attention within the batch."""
    scores = 0 if settings.flash_attention else widest(arch.n_head) * u
    return u * F32 * max(3 * arch.n_embd + widest(arch.n_ff), 6 * arch.n_embd + scores)


def _masks(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Attention masks: f16 with flash attention, else f32; one for full, one for sliding layers.

    An encoder without a cache attends within the batch.
    """
    cells = (settings.n_ctx_seq if kinds.full else 0) + (sliding_cells(arch, settings) if kinds.sliding else 0)
    if not cells and not kinds.recurrent:
        cells = u
    return u * (2 if settings.flash_attention else F32) * cells


def _feed_forward(arch: ArchitectureConfig, settings: Settings) -> int:
    """Values a token of the dense or the expert feed-forward, whichever is larger.

    Gate, up and their product are live together, above three rows and the queries' leftover. The down projection
    of all experts used needs room of its own where it does not fit into gate and up.
    """
    matrices = 2 if arch.arch in NEMOTRON else 3
    rest = 3 * arch.n_embd + head_width(arch)
    if arch.arch in DELTA_NET:
        rest = (4 if settings.flash_attention else 5) * arch.n_embd
    elif arch.arch in SANDWICH_NORMS and (quantised(settings) or not settings.flash_attention):
        rest += head_width(arch)
    elif arch.arch in NO_QUERY_LEFTOVER and arch.n_expert:
        rest = 3 * arch.n_embd + 2 * arch.n_expert
    dense = matrices * widest(arch.n_ff) + rest
    if not arch.n_expert:
        return dense
    k = settings.n_expert_used
    down = k * arch.n_embd
    if is_mla(arch):
        shared = arch.n_ff_shexp or arch.n_expert_shared * arch.n_ff_exp
        return max(dense, down + 3 * k * arch.n_ff_exp + rest - arch.n_embd + shared)
    if down <= (matrices - 1) * k * arch.n_ff_exp:
        down = 0
    experts = matrices * k * arch.n_ff_exp + down + rest
    return experts if arch.n_layer_dense_lead == 0 else max(dense, experts)


def _attention(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Attention; without flash attention the scores of every head over every cell."""
    heads = widest(arch.n_head)
    if is_mla(arch):
        values = 6 * arch.n_embd + head_width(arch) + (2 * heads + 2) * key_length(arch)
        if not settings.flash_attention:
            values = 15 * arch.n_embd // 2 + head_width(arch) + (heads + 4) * key_length(arch)
    else:
        values = 3 * arch.n_embd + 2 * head_width(arch)
        if kinds.recurrent:
            values += head_width(arch) + 2 * max(1, widest(arch.n_head_kv)) * key_length(arch)
    if settings.flash_attention:
        return u * F32 * (values + 2 * key_length(arch))
    cells = settings.n_ctx_seq if kinds.full else sliding_cells(arch, settings)
    size = u * F32 * (values + heads * cells)
    if is_mla(arch):
        size += cells * settings.streams * arch.kv_lora_rank * 2
    return size


def _recurrent(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Mamba-2 or gated delta net; other recurrences are priced as Mamba-2."""
    if not kinds.recurrent:
        return 0
    conv, inner, state = conv_dim(arch), arch.ssm_d_inner, arch.ssm_d_state
    history = 2 * max(0, arch.ssm_d_conv - 1) * conv
    if arch.arch in DELTA_NET:
        tokens = 3 * arch.n_embd + max(3 * conv, conv + 4 * inner)
        return u * F32 * tokens + settings.slots * F32 * (2 * inner * state + history)
    projection = 2 * inner + 2 * arch.ssm_n_group * state + arch.ssm_dt_rank
    tokens = projection + 2 * conv + inner + 4 * arch.n_embd
    return u * F32 * tokens + settings.slots * F32 * (inner * state + history)
