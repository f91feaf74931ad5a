"""In what builds of llama-server differ for the plan. Pure.

Measured by dry runs of b10068, b10092, b10434 and b11434. Of a build that nobody has seen the larger figure counts.
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
"""From here on layers for further tokens are loaded for `draft-mtp` alone, in every architecture."""
SKIPS_NEXTN_KV = 11434
"""From here on the model's own context has no K/V for those layers; before, only the hybrids left them out."""

SPARSE_ANEW = 10434
"""From here on glm-dsa models use their indexer, and both have no K/V of layers for further tokens."""

TENSOR_SPLIT_SEEN = 11434
"""The last build that was seen to refuse some architectures under `--split-mode tensor`."""

SPECULATES_EVERYWHERE = 10068
"""From here on models with recurrent layers, latent attention and images speculate (of the builds tried)."""
TRAINED_DRAFTS = frozenset({"mtp", "eagle3", "dflash", "dspark"})


def build_number(dialect: str) -> int:
    """`b11434` → 11434; UNKNOWN for names of another form."""
    found = re.fullmatch(r"b(\d+)", dialect)
    return int(found[1]) if found else UNKNOWN


def loads_nextn(arch: ArchitectureConfig, build: int, *, drafts: bool) -> bool:
    """Whether layers for further tokens are loaded: for who `drafts` with them, of some architectures for everybody.

    Source: llama-model.cpp load_tensors.
    """
    if traits(arch.arch).always_loads_nextn:
        return drafts or build < SKIPS_NEXTN_WEIGHTS
    return drafts and not UNKNOWN < build <= traits(arch.arch).no_nextn_until


def drafts_further(arch: ArchitectureConfig, build: int) -> bool:
    """Whether the build is known to draft with the architecture's own layers for further tokens."""
    return traits(arch.arch).always_loads_nextn or build == UNKNOWN or build >= SKIPS_NEXTN_KV


def rolled_back(arch: ArchitectureConfig, settings: Settings) -> int:
    """States beside the present one that a sequence keeps, to which drafted tokens are rolled back (n_rs_seq).

    Others keep a copy on the host instead (a checkpoint). Source: common.h need_n_rs_seq, llama-arch.cpp
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
