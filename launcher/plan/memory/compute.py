"""Compute buffers: an upper bound fitted to llama.cpp's sched_reserve (CPU). Pure.

On 425 combinations of full-size shapes it was never under and at most 28 % over (61 % for a MoE without gate); a
first version was 6.7 % under on architectures that it had not seen, hence `with_margin`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.ir.config import ArchitectureConfig
from launcher.plan.memory.context import pad
from launcher.plan.memory.kv import sliding_cells
from launcher.plan.memory.layers import Layers, is_mla, key_length, widest
from launcher.plan.memory.output import outputs_max
from launcher.plan.memory.parts import Part
from launcher.plan.memory.placement import fully_offloaded
from launcher.plan.memory.recurrent import conv_dim
from launcher.plan.settings import RAM, Settings
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
    }
)
"""Architectures that the formulas were compared with."""
DELTA_NET = frozenset({"qwen3next", "qwen35", "qwen35moe", "kimi-linear"})
"""Recurrent layers are gated delta nets; elsewhere Mamba-like."""
GATED_QUERY = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""attn_q is twice as wide."""
F32 = 4
UNPLACED = MIB // 2
QUANTISED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})


class ComputeBound(msgspec.Struct, frozen=True, kw_only=True):
    """Without margin: attention masks, the largest phase of a graph, and one row of activations (E·u·4)."""

    masks: int
    phase: int
    row: int

    @property
    def whole(self) -> int:
        """The buffer of a backend that computes everything."""
        return self.masks + self.phase + UNPLACED


def with_margin(arch: ArchitectureConfig, size: int) -> int:
    """`size` plus 10 % and 16 MiB on architectures that were swept, 30 % and 16 MiB on others."""
    return size + size * (10 if arch.arch in SWEPT else 30) // 100 + 16 * MIB


def micro_batch(settings: Settings) -> int:
    """Tokens of the reserved worst-case graph: rounded up to a multiple of the slots."""
    return pad(min(settings.n_ctx, settings.n_ubatch), settings.slots)


def head_width(arch: ArchitectureConfig) -> int:
    """Width of all query heads together."""
    head = arch.key_length_mla if is_mla(arch) else key_length(arch)
    return widest(arch.n_head) * head * (2 if arch.arch in GATED_QUERY else 1)


def compute_bound(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> ComputeBound:
    """The closed form of MEMORY.md: masks + the largest of feed-forward, attention, recurrent and logits."""
    u = micro_batch(settings)
    phases = [
        _feed_forward(arch, settings, u),
        _attention(arch, kinds, settings, u),
        _recurrent(arch, kinds, settings, u),
        min(u, outputs_max(settings)) * arch.n_vocab * F32 + 4 * arch.n_embd * u * F32,
    ]
    extra = 0
    if {settings.cache_type_k, settings.cache_type_v} & QUANTISED:
        extra = u * F32 * head_width(arch) + key_length(arch) ** 2 * F32
    return ComputeBound(masks=_masks(arch, kinds, settings, u), phase=max(phases) + extra, row=arch.n_embd * u * F32)


def _masks(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Attention masks: f16 with flash attention, else f32; one for full, one for sliding layers.

    An encoder without a cache attends within the batch.
    """
    cells = (settings.n_ctx_seq if kinds.full else 0) + (sliding_cells(arch, settings) if kinds.sliding else 0)
    if not cells and not kinds.recurrent:
        cells = u
    return u * (2 if settings.flash_attention else F32) * cells


def _feed_forward(arch: ArchitectureConfig, settings: Settings, u: int) -> int:
    """Dense or expert feed-forward, whichever is larger."""
    width = 3 * arch.n_embd + head_width(arch)
    dense = 3 * widest(arch.n_ff) + width
    k = settings.n_expert_used
    shared = arch.n_ff_shexp or arch.n_expert_shared * arch.n_ff_exp
    experts = k * arch.n_embd + 3 * k * arch.n_ff_exp + width + shared if arch.n_expert else 0
    return u * F32 * max(dense, experts)


def _attention(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Attention; without flash attention the scores of every head over every cell."""
    heads = widest(arch.n_head)
    kv = 2 * max(1, widest(arch.n_head_kv)) * key_length(arch)
    if is_mla(arch):
        flash = 6 * arch.n_embd + 2 * heads * key_length(arch) + head_width(arch) + kv
    else:
        flash = 3 * arch.n_embd + 3 * head_width(arch) + kv
    size = u * F32 * flash
    if not settings.flash_attention:
        cached = kinds.full or kinds.sliding
        cells = (settings.n_ctx_seq if kinds.full else sliding_cells(arch, settings)) if cached else u
        size += u * heads * F32 * cells
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
        tokens = 3 * conv + 2 * inner + 3 * arch.n_embd
        return u * F32 * tokens + settings.slots * F32 * (2 * inner * state + history)
    projection = 2 * inner + 2 * arch.ssm_n_group * state + arch.ssm_dt_rank
    tokens = projection + 2 * conv + inner + 4 * arch.n_embd
    return u * F32 * tokens + settings.slots * F32 * (inner * state + history)


def compute_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """Compute buffers by device, with margin: whole on each side unless everything is offloaded.

    A full offload needs a row of activations less on the device, and masks and two rows on the host.
    """
    bound = compute_bound(arch, kinds, settings)
    host = device = bound.whole
    if fully_offloaded(kinds.n_layer, settings):
        host, device = bound.masks + 2 * bound.row, bound.whole - bound.row
    yield Part(device=RAM, component="compute", committed=with_margin(arch, host))
    for name in settings.devices:
        yield Part(device=name, component="compute", committed=with_margin(arch, device))
