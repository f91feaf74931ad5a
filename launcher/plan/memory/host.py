"""Host memory outside every "buffer size" line: process, vocabulary, graph, checkpoints, prompt cache. Pure.

Constants were measured on llama-server b10434 (MEMORY.md), rounded up.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.builds import rolled_back
from launcher.plan.memory.compute_bound import head_width, micro_batch
from launcher.plan.memory.kv import cells, token_bytes
from launcher.plan.memory.layer_kinds import Layers, widest
from launcher.plan.memory.recurrent import state_bytes
from launcher.sizes import MIB

PROCESS = 15 * MIB // 2
LIBRARIES = 26 * MIB
"""Pages of the binary and its libraries (CPU and Vulkan builds); shared among servers, yet counted for each."""
TOKEN = 230
MERGE = 190
CELL = 48
GRAPH_NODE = 880
NODES_MIN = 1024
SLOT = 136_315
"""0.13 MiB a slot, without its candidate tokens."""
CANDIDATE = 12
"""Bytes of a candidate token (llama_token_data) a slot."""
NGRAM_MOD = 16 * MIB
CHECKPOINT_STEP = 8192
MANY_NODES = frozenset({"qwen3next", "qwen35", "qwen35moe", "kimi-linear", "deepseek4", "minimax-m3"})


def vocabulary_bytes(arch: ArchitectureConfig) -> int:
    """Tokens and merges as the tokenizer holds them."""
    return arch.n_vocab * TOKEN + arch.n_merges * MERGE


def graph_bytes(arch: ArchitectureConfig, settings: Settings, tensors: int) -> int:
    """Graph metadata: 880 B for each of max_nodes (llama-context.cpp graph_max_nodes)."""
    nodes = max(NODES_MIN, 8 * tensors)
    if arch.arch in MANY_NODES:
        nodes = max(40 * micro_batch(settings), 32 * tensors)
    return nodes * GRAPH_NODE


def work_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """The CPU backend's work buffer, bound: one quantised activation, or the scores without flash attention."""
    u = micro_batch(settings)
    widths = (arch.n_embd, widest(arch.n_ff), arch.n_ff_exp * settings.n_expert_used, arch.ssm_d_inner)
    size = u * max(*widths, head_width(arch)) * 4
    if not settings.flash_attention and (kinds.full or kinds.sliding):
        size += u * settings.n_ctx_seq * widest(arch.n_head) * 2
    return size


def context_overhead(arch: ArchitectureConfig, kinds: Layers, settings: Settings, tensors: int) -> Part:
    """What each model context costs the host beside its buffers (a draft has one too)."""
    at_load = vocabulary_bytes(arch) + graph_bytes(arch, settings, tensors) + CELL * cells(arch, kinds, settings)
    return Part(device=RAM, component="overhead", committed=at_load, later=work_bytes(arch, kinds, settings))


def process_overhead(arch: ArchitectureConfig, settings: Settings) -> Part:
    """The process itself with its libraries, its slots and its n-gram table."""
    size = PROCESS + LIBRARIES + settings.slots * (SLOT + CANDIDATE * arch.n_vocab)
    if settings.ngram is not None and settings.ngram.kind == "mod":
        size += NGRAM_MOD
    return Part(device=RAM, component="overhead", committed=size)


def device_contexts(settings: Settings) -> Iterator[Part]:
    """What the process holds of each device before it loads anything."""
    for device, size in settings.contexts:
        if size:
            yield Part(device=device, component="overhead", committed=size)


def checkpoint_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """One context checkpoint: a recurrent state, or the window of the sliding layers; 0 where none is made.

    Source: server-context.cpp create_checkpoint.
    """
    if kinds.recurrent:
        return len(kinds.recurrent) * state_bytes(arch)
    if not kinds.sliding or settings.swa_full:
        return 0
    row = sum(token_bytes(arch, kinds, settings, layer, sliding=True) for layer in kinds.sliding)
    return row * min(arch.n_swa, settings.n_ctx_seq)


def checkpoint_part(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Part:
    """Checkpoints of full slots, later than load: at most one each 8192 tokens and four more, in host memory."""
    count = 0 if settings.embedding else min(settings.context_checkpoints, settings.n_ctx_seq // CHECKPOINT_STEP + 4)
    later = max(0, count) * settings.slots * checkpoint_bytes(arch, kinds, settings)
    return Part(device=RAM, component="overhead", later=later)


def speculation_part(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Part:
    """What verifying drafted tokens may have to go back to: a checkpoint a slot, where states cannot be rolled back.

    Source: server-context.cpp ("speculative decoding will use checkpoints").
    """
    speculates = settings.draft_n_max > 0 or settings.ngram is not None
    rolls = rolled_back(arch, settings.draft_kind, settings.draft_n_max)
    size = checkpoint_bytes(arch, kinds, settings) * settings.slots if speculates and not rolls else 0
    return Part(device=RAM, component="overhead", later=size)


def prompt_cache_part(settings: Settings) -> Part:
    """The prompt cache's limit (--cache-ram), filled by completions, with images or without.

    Without a limit (-1) nothing is counted: `plan/prompt-cache-unlimited` says so.
    Source: server-context.cpp get_available_slot.
    """
    return Part(
        device=RAM, component="overhead", growth=0 if settings.embedding else max(0, settings.cache_ram_mib) * MIB
    )
