"""Compute buffers: an upper bound on what llama_context::sched_reserve takes. Pure.

Values per token (f32, rows of a micro-batch) that llama.cpp's graphs keep while one part of a layer is evaluated, by
part; the largest part decides. A build's allocator leaves holes between them, for which there is a margin. This bound
for one backend is then put on host and devices. Only the server itself knows the exact size (`launch plan --prove`).

Read from llama.cpp src/llama-graph.cpp (build_inp_embd, build_ffn, build_moe_ffn, build_attn_mha, build_rs) and
src/models, and compared with dry runs of builds b10068 to b11434 (docs/memory.md). Where builds differ, the larger
figure counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.ir.architectures import traits
from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import RAM, Part, Settings
from launcher.plan.builds import rolled_back
from launcher.plan.memory.caches import (
    conv_dim,
    outputs_max,
    row_bytes,
    sliding_cells,
    state_bytes,
    token_bytes,
)
from launcher.plan.memory.layout import Layers, fully_offloaded, is_mla, key_length, pad, torn, value_length, widest
from launcher.sizes import KIB, MIB

HOLES, HOLES_OF_HYBRIDS = 5, 20
"""Percent of what is live that holes between values take; more where layers of two kinds take turns, because what fits
after the one does not after the other."""
SLACK = 256 * KIB
"""Alignment and small values."""
PLAIN = frozenset({"f32", "f16", "bf16"})
"""K/V types without blocks."""
F32 = 4
INPUTS = 24
"""Values a token of the graph's inputs: tokens, positions, outputs, K/V indices."""
INPUTS_BASE = 16 * KIB
V_INDEX = 8
"""Bytes of an index into the V cache, which without flash attention is transposed: one for every value of a token."""
ROTATED = 16
"""Further values a token where K/V are quantised, beside the matrix that rotates them."""


class Phase(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One part of a layer: values per token, bytes per sequence in recurrent states, bytes of scores or logits."""

    values: int
    states: int = 0
    known: int = 0


FED_LAYERS, LAYER_WIDTH = 4, {"gemma3n": 256}
"""What each layer gets of every token beside the stream is looked up, projected, added and turned for all layers at
once; its width where the file does not say it (src/models/gemma3n.cpp)."""


def micro_batch(settings: Settings) -> int:
    """Tokens of the reserved worst-case graph: rounded up to a multiple of the slots.

    At least one token a slot, for which a graph is reserved too (llama-context.cpp sched_reserve).
    """
    slots = max(1, settings.slots)
    return max(slots, pad(min(settings.n_ctx, settings.n_ubatch), slots))


def head_width(arch: ArchitectureConfig) -> int:
    """Width of all query heads together."""
    head = arch.key_length_mla if is_mla(arch) else key_length(arch)
    return widest(arch.n_head) * head * (2 if traits(arch.arch).gated_query else 1)


def quantised(settings: Settings) -> bool:
    """Whether K or V are kept in blocks."""
    return bool({settings.cache_type_k, settings.cache_type_v} - PLAIN)


def largest_phase(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Bytes of the largest of feed-forward, attention, recurrent mixer and logits, with room for holes.

    Scores and logits lie at the end of a buffer; what else is live in their part leaves holes.
    """
    holes = HOLES_OF_HYBRIDS if kinds.recurrent else HOLES
    largest = 0
    for phase in phases(arch, kinds, settings, u):
        live = u * F32 * phase.values + phase.states
        largest = max(largest, phase.known + live + live * holes // 100)
    return largest


def taken_over(arch: ArchitectureConfig, settings: Settings) -> int:
    """Bytes of a device that goes on where the host's experts end: what each of them gave, and the same weighted.

    The scheduler gives the sum over experts to the device that computes the next layer (ggml-backend.cpp
    ggml_backend_sched_split_graph). Experts of its own do not all fit into the room that this leaves.
    """
    if not arch.n_expert:
        return 0
    values = 2 * settings.n_expert_used * arch.n_embd + _base(arch) + max(_feed_forward(arch, settings)) // 3
    live = micro_batch(settings) * F32 * values
    return live + live * HOLES // 100 + SLACK


def phases(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> list[Phase]:
    """What is live in each part of the graph, for a micro-batch of `u` tokens.

    Scores without flash attention, and the logits of models with experts, are too large for any hole: they lie above
    what the other parts left. Half of what those need beyond its own counts as left.
    """
    found = [Phase(values=values) for values in _feed_forward(arch, settings)]
    found += _recurrent(arch, kinds, settings)
    chosen = 0
    if arch.indexer_key_length:
        # an indexer's scores of every cell, of which the mask of the chosen ones is made (src/models/deepseek32.cpp);
        # beside them its queries as projected, turned, rotated and copied
        chosen = u * F32 * settings.n_ctx_seq
        found.append(Phase(values=_base(arch) + 4 * arch.indexer_n_head * arch.indexer_key_length, known=chosen))
    silent = not arch.causal or (settings.embedding and traits(arch.arch).embeds_without_logits)
    rows = 0 if silent else min(u, outputs_max(settings)) * arch.n_vocab * F32
    logits = Phase(values=_base(arch) + 2 * arch.n_embd, known=rows)
    attention = _attention(arch, kinds, settings, u, chosen)
    left = max(phase.values + phase.states // (u * F32) for phase in found)
    for phase, above in ((attention, not settings.flash_attention), (logits, arch.n_expert > 0)):
        more = max(0, left - phase.values) // 2 if above and phase.known else 0
        found.append(msgspec.structs.replace(phase, values=phase.values + more))
    return found


def _base(arch: ArchitectureConfig) -> int:
    """Values a token that no part of the graph gives back, the residual stream, and a part's input.

    Kept are embeddings that are given and, in newer builds, their mix with tokens (llama-graph.cpp build_inp_embd):
    branches that are not taken keep their room. With deepstack features each is wider, and so are what was looked up
    and padded, the features kept for the first layers, and the holes that they leave.
    """
    wide = arch.n_embd * (1 + arch.n_deepstack)
    return 2 * wide + (3 * wide if arch.n_deepstack else 0) + 2 * arch.n_embd


def _inputs(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int) -> int:
    """Tokens, positions, indices, the matrices that rotate quantised K and V, and attention masks.

    A mask is f16 with flash attention, else f32; there is one for full, one for sliding layers. An encoder without a
    cache attends within the batch.
    """
    cells = settings.n_ctx_seq * (2 if arch.indexer_key_length else 1) if kinds.full else 0
    cells += sliding_cells(arch, settings) if kinds.sliding else 0
    if not cells and not kinds.recurrent:
        cells = u * (2 if arch.n_swa else 1)
    size = u * INPUTS * F32 + INPUTS_BASE + (MIB // 2 if kinds.recurrent else 0)
    size += u * (2 if settings.flash_attention else F32) * cells
    if is_mla(arch):
        return size
    if quantised(settings):
        size += (key_length(arch) ** 2 + u * ROTATED) * F32
    if not settings.flash_attention:
        caches = bool(kinds.full) + bool(kinds.sliding)
        size += caches * u * V_INDEX * max(1, widest(arch.n_head_kv)) * value_length(arch)
    return size


def _feed_forward(arch: ArchitectureConfig, settings: Settings) -> list[int]:
    """Values a token of the dense feed-forward, of the experts used, and of the shared expert.

    Gate, up and their product are live together, with the queries of the layer's first half. The down projection of all
    experts used needs room of its own where it does not fit into gate and up; the routed result is kept beside the
    shared expert. Layers of a compared mixture are dense only where it says so.
    """
    matrices = traits(arch.arch).ungated or 3
    rest = _base(arch) + head_width(arch)
    dense = matrices * widest(arch.n_ff) + rest + (3 * arch.ssm_d_inner if traits(arch.arch).both_mixers else 0)
    if not arch.n_expert:
        return [dense]
    used = settings.n_expert_used * arch.n_ff_exp
    down = settings.n_expert_used * arch.n_embd
    if down <= (matrices - 1) * used and not is_mla(arch):
        down = 0
    shared = arch.n_ff_shexp or arch.n_expert_shared * arch.n_ff_exp
    found = [matrices * used + down + rest + 2 * arch.n_expert, matrices * shared + rest + 2 * arch.n_embd]
    return [*found, dense] if arch.n_layer_dense_lead or not traits(arch.arch).compared else found


def _attention(arch: ArchitectureConfig, kinds: Layers, settings: Settings, u: int, chosen: int) -> Phase:
    """Queries, keys, values and the result; without flash attention the scores of every head over every cell too.

    `chosen`: bytes of an indexer's scores. A model that attends within the batch, without a cache, is an encoder.
    """
    heads, queries, flash = widest(arch.n_head), head_width(arch), settings.flash_attention
    kv = max(1, widest(arch.n_head_kv)) * (key_length(arch) + value_length(arch))
    cells = settings.n_ctx_seq if kinds.full else sliding_cells(arch, settings) if kinds.sliding else 0
    if not arch.causal and not (kinds.full or kinds.sliding or kinds.recurrent):
        cells = u
        values = _base(arch) - arch.n_embd + queries + kv * 3 // 2
    elif is_mla(arch):
        values = 6 * arch.n_embd + queries + (2 * heads + 4) * key_length(arch)
        if not flash:
            values = 9 * arch.n_embd + queries + (heads + 4) * key_length(arch)
        if arch.indexer_n_head:
            values += 4 * arch.indexer_n_head * arch.indexer_key_length
            values += queries // 2 if flash else 3 * queries + 4 * arch.n_embd
    else:
        values = _base(arch) + arch.n_embd + (3 if quantised(settings) else 2) * queries + kv
    if flash:
        return Phase(values=values, known=chosen)
    latent = cells * settings.streams * arch.kv_lora_rank * 2 if is_mla(arch) else 0
    return Phase(values=values, known=u * F32 * heads * cells + latent + chosen)


def _recurrent(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> list[Phase]:
    """Mamba-2, a gated delta net, or a short convolution; other recurrences are priced as Mamba-2.

    States are live twice a sequence: as they were gathered (newer builds gather them all at once, llama-graph.cpp
    build_rs), and as the scan leaves them.
    """
    if not kinds.recurrent:
        return []
    kept = 1 + rolled_back(arch, settings)
    if arch.shortconv_l_cache:
        history = 2 * (arch.shortconv_l_cache - 1) * arch.n_embd
        states = settings.slots * F32 * history * kept
        return [Phase(values=_base(arch) + 5 * arch.n_embd, states=states)]
    conv, inner, state = conv_dim(arch), arch.ssm_d_inner, arch.ssm_d_state
    states = 2 * inner * state + 2 * max(0, arch.ssm_d_conv - 1) * conv
    if traits(arch.arch).delta_net:
        values = _base(arch) + arch.n_embd + max(3 * conv, conv + 4 * inner)
    else:
        projection = 2 * inner + 2 * arch.ssm_n_group * state + arch.ssm_dt_rank
        beside = 4 if traits(arch.arch).both_mixers else 2
        values = _base(arch) + beside * arch.n_embd + projection + 2 * conv + inner
    return [Phase(values=values, states=settings.slots * F32 * states * kept)]


NEVER_COMPARED, UNKNOWN_DEVICE = 30, 10
"""Percent on top, with `RESERVE`: for architectures that no server was asked about, and for devices whose allocator was
not compared (CUDA, ROCm, Vulkan, Metal)."""
RESERVE = 16 * MIB
FED = 5
"""Rows that a host holds which only feeds devices: given, looked up, mixed, scaled or normed. As many may come over
where host and devices take turns."""
PIPELINED = 4
"""Batches under way at once where layers are split over several devices: each has inputs of its own
(ggml-backend.cpp GGML_SCHED_MAX_COPIES)."""
SCATTERED = 4
"""Further copies of a layer's recurrent states on each side, where rules have its mixer elsewhere than them."""
COPIES = 2
"""A layer's K/V or states that are kept on the host are copied to the device, and rearranged there."""


def not_compared(arch: ArchitectureConfig) -> str:
    """Why a model's figures were never compared with a server's; "" where they were."""
    return "" if traits(arch.arch).compared else f"the graph of {arch.arch} is not known"


def compute_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """Compute buffers by device: whole on each side, unless everything is offloaded and the host only feeds devices.

    Whole are masks and inputs, what is fed to each layer, the largest part of the graph, and a row for fragments; a
    host that only feeds devices holds inputs and rows of activations.
    """
    u = micro_batch(settings)
    row, inputs = arch.n_embd * u * F32, _inputs(arch, kinds, settings, u)
    fed_width = FED_LAYERS * (arch.n_embd_per_layer or LAYER_WIDTH.get(arch.arch, 0))
    whole = inputs + fed_width * arch.n_layer * u * F32 + largest_phase(arch, kinds, settings, u) + row + SLACK
    if not_compared(arch):
        whole += whole * NEVER_COMPARED // 100 + RESERVE
    rows = FED * row * (1 + arch.n_deepstack)
    more = (PIPELINED - 1) * (inputs + rows) if _pipelined(kinds.n_layer, settings) else 0
    fed = fully_offloaded(kinds.n_layer, settings)
    host = min(whole, inputs + rows + SLACK) if fed else whole
    pulled = torn(kinds.n_layer, settings) - {RAM}
    scattered = SCATTERED * _layer_states(arch, kinds, settings) if pulled else 0
    yield Part(device=RAM, component="compute", committed=host + more + scattered)
    if not settings.devices:
        return
    device = whole + more if fed else max(whole, inputs + row + taken_over(arch, settings)) + more + rows
    # lfm2's devices compute the attention of the host's layers before them (dry runs of b10068)
    copied = not settings.kv_offload or (arch.shortconv_l_cache > 0 and not fed)
    moved = copied or pulled
    beside = COPIES * max(_layer_kv(arch, kinds, settings), _layer_states(arch, kinds, settings)) if moved else 0
    for name in settings.devices:
        size = device + (beside if copied or name in pulled else 0)
        size += scattered if name in pulled else 0
        yield Part(device=name, component="compute", committed=size if settings.plain_devices else on_card(size))


def on_card(size: int) -> int:
    """A buffer of `size` bytes on a device whose allocator was not compared."""
    return size + size * UNKNOWN_DEVICE // 100 + RESERVE


def _pipelined(n_layer: int, settings: Settings) -> bool:
    """Whether devices work on several batches in a pipeline (llama-context.cpp, `pipeline_parallel`)."""
    whole = settings.n_gpu_layers > n_layer and not settings.n_cpu_moe and settings.kv_offload
    moved = settings.n_cpu_ffn or settings.placement or settings.split_mode != "layer"
    return whole and not moved and len(settings.devices) > 1


def _layer_states(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    return state_bytes(arch) * settings.slots if kinds.recurrent else 0


def _layer_kv(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Bytes of the largest layer's K/V."""
    sizes = [0]
    for layers, cells, sliding in (
        (kinds.full, settings.n_ctx_seq, False),
        (kinds.sliding, sliding_cells(arch, settings), True),
    ):
        rows = (token_bytes(arch, kinds, settings, il, sliding=sliding) for il in layers)
        key = row_bytes(settings.cache_type_k, arch.indexer_key_length, settings) if not sliding else 0
        sizes.append((max(rows, default=0) + key) * cells * settings.streams)
    return max(sizes)
