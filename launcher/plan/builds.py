"""Differences between llama-server builds that matter to the plan. Pure.

Measured with dry runs of b10068, b10092, b10434 and b11434. For a build that was never tried the larger figure counts.
"""

from __future__ import annotations

import re

import msgspec

from launcher.ir.architectures import traits
from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import Settings

UNKNOWN = 0
"""Number of a build whose dialect has no number."""
SKIPS_NEXTN_WEIGHTS = 10434
"""From this build on, next-token-prediction layers are loaded for `draft-mtp` alone, in every architecture."""
SKIPS_NEXTN_KV = 11434
"""From this build on, the model's own context has no K/V for those layers; before, only the hybrids left them out."""

SPARSE_ANEW = 10434
"""From this build on, glm-dsa models use their indexer; neither it nor the model has K/V for next-token-prediction
layers."""

TENSOR_SPLIT_SEEN = 11434
"""The last build known to refuse some architectures under `--split-mode tensor`."""

SPECULATES_EVERYWHERE = 10068
"""From this build on (of those tried), models with recurrent layers, latent attention or images can speculate."""
TRAINED_DRAFTS = frozenset({"mtp", "eagle3", "dflash", "dspark"})


def build_number(dialect: str) -> int:
    """`b11434` → 11434; UNKNOWN for other names."""
    found = re.fullmatch(r"b(\d+)", dialect)
    return int(found[1]) if found else UNKNOWN


def loads_nextn(arch: ArchitectureConfig, build: int, *, drafts: bool) -> bool:
    """Whether next-token-prediction layers are loaded: when drafting with them; for some architectures always.

    Source: llama-model.cpp load_tensors.
    """
    if traits(arch.arch).always_loads_nextn:
        return drafts or build < SKIPS_NEXTN_WEIGHTS
    return drafts and not UNKNOWN < build <= traits(arch.arch).no_nextn_until


def drafts_further(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the build is known to draft with the architecture's next-token-prediction layers."""
    return traits(arch.arch).always_loads_nextn or build == UNKNOWN or build >= SKIPS_NEXTN_KV


def rolled_back(arch: ArchitectureConfig, settings: Settings) -> int:
    """Recurrent states per sequence beside the present one, for rolling back drafted tokens (n_rs_seq).

    Other architectures keep a copy on the host instead (a checkpoint). Source: common.h need_n_rs_seq, llama-arch.cpp
    llm_arch_supports_rs_rollback.
    """
    return settings.draft_n_max if traits(arch.arch).rolls_back and settings.draft_kind in TRAINED_DRAFTS else 0


def as_built(arch: ArchitectureConfig, build: int) -> ArchitectureConfig:
    """`arch` as the build runs it: without an indexer that it does not use; it then attends to everything."""
    unused = arch.indexer_key_length > 0 and arch.arch == "glm-dsa" and UNKNOWN < build < SPARSE_ANEW
    return msgspec.structs.replace(arch, indexer_key_length=0) if unused else arch


def keeps_nextn_kv(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the model's own context keeps K/V for those layers (llama-model.cpp create_memory)."""
    if traits(arch.arch).indexer is not None:
        return build < SPARSE_ANEW
    return not arch.ssm_d_inner and build < SKIPS_NEXTN_KV
