"""In what builds of llama-server differ for the plan. Pure.

Measured by dry runs of b10068, b10092, b10434 and b11434. Of a build that nobody has seen the larger figure counts.
"""

from __future__ import annotations

import re

import msgspec

from launcher.ir.config import ArchitectureConfig

UNKNOWN = 0
"""Number of a build whose dialect has no number."""
SKIPS_NEXTN_WEIGHTS = 10434
"""From here on layers for further tokens are loaded for `draft-mtp` alone, in every architecture."""
LOADED_NEXTN = frozenset({"qwen35", "qwen35moe"})
"""Architectures whose layers for further tokens were always loaded before."""
NEVER_NEXTN = {"glm4moe": 10434, "deepseek32": 10092, "glm-dsa": 10092}
"""Architecture → the last build that was seen not to load such layers, even for `draft-mtp`."""
SKIPS_NEXTN_KV = 11434
"""From here on the model's own context has no K/V for those layers; before, only the hybrids left them out."""

SPARSE = frozenset({"deepseek32", "glm-dsa"})
"""Latent attention with an indexer."""
SPARSE_ANEW = 10434
"""From here on glm-dsa models use their indexer, and both have no K/V of layers for further tokens."""

NO_TENSOR_SPLIT = frozenset(
    {
        *("grok", "mpt", "plamo2", "minicpm3", "gemma3n", "mamba", "mamba2", "jamba", "falcon-h1", "olmo2", "olmoe"),
        *("deepseek2", "deepseek32", "glm-dsa", "bitnet", "t5", "nemotron_h", "nemotron_h_moe", "granitehybrid"),
        *("minimax-m2", "minimax-m3", "mistral4", "kimi-linear"),
    }
)
"""Architectures that builds up to TENSOR_SPLIT_SEEN refuse under `--split-mode tensor` (llama-arch.cpp
llm_arch_supports_sm_tensor)."""
TENSOR_SPLIT_SEEN = 11434

SPECULATES_EVERYWHERE = 10068
"""From here on models with recurrent layers, latent attention and images speculate (of the builds tried)."""
ROLLS_BACK = frozenset(
    {
        *("kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "glm5-next", "nemotron_h", "nemotron_h_moe"),
        *("lfm2", "lfm2moe", "bailingmoe3"),
    }
)
TRAINED_DRAFTS = frozenset({"mtp", "eagle3", "dflash", "dspark"})


def build_number(dialect: str) -> int:
    """`b11434` → 11434; UNKNOWN for names of another form."""
    found = re.fullmatch(r"b(\d+)", dialect)
    return int(found[1]) if found else UNKNOWN


def loads_nextn(arch: ArchitectureConfig, build: int, *, drafts: bool) -> bool:
    """Whether layers for further tokens are loaded: for who `drafts` with them, of some architectures for everybody.

    Source: llama-model.cpp load_tensors.
    """
    if arch.arch in LOADED_NEXTN:
        return drafts or build < SKIPS_NEXTN_WEIGHTS
    return drafts and not UNKNOWN < build <= NEVER_NEXTN.get(arch.arch, UNKNOWN)


def keeps_indexer(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the build keeps a cache for the indexer; one that does not attends to everything."""
    return arch.indexer_key_length > 0 and not (arch.arch == "glm-dsa" and 0 < build < SPARSE_ANEW)


def drafts_further(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the build is known to draft with the architecture's own layers for further tokens."""
    return arch.arch in LOADED_NEXTN or build == UNKNOWN or build >= SKIPS_NEXTN_KV


def rolled_back(arch: ArchitectureConfig, draft_kind: str, n_max: int) -> int:
    """States beside the present one that a sequence keeps, to which drafted tokens are rolled back (n_rs_seq).

    Others keep a copy on the host instead (a checkpoint). Source: common.h need_n_rs_seq, llama-arch.cpp
    llm_arch_supports_rs_rollback.
    """
    return n_max if arch.arch in ROLLS_BACK and draft_kind in TRAINED_DRAFTS else 0


def as_built(arch: ArchitectureConfig, build: int) -> ArchitectureConfig:
    """`arch` as the build runs it: without an indexer that it does not use."""
    indexed = not arch.indexer_key_length or keeps_indexer(arch, build)
    return arch if indexed else msgspec.structs.replace(arch, indexer_key_length=0)


def keeps_nextn_kv(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the model's own context keeps K/V for those layers (llama-model.cpp create_memory)."""
    if arch.arch in SPARSE:
        return build < SPARSE_ANEW
    return not arch.ssm_d_inner and build < SKIPS_NEXTN_KV
