"""The output buffer: logits and embeddings that leave the context. Source: llama-context.cpp output_reserve. Pure."""

from __future__ import annotations

from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings

F32 = 4
NGRAM_DRAFT = {"simple": 48, "map-k": 48, "map-k4v": 48, "mod": 64, "cache": 8}
"""Tokens drafted ahead by n-gram speculation (common/speculative.cpp defaults)."""


def drafted(settings: Settings) -> int:
    """Tokens verified at once beside the sampled one, by draft model or n-grams."""
    ngram = 0
    if settings.ngram is not None:
        ngram = settings.ngram.n_max or NGRAM_DRAFT[settings.ngram.kind]
    return max(settings.draft_n_max, ngram)


def outputs_max(settings: Settings) -> int:
    """Most rows of logits in one batch (n_outputs_max)."""
    if settings.embedding:
        return settings.n_batch
    return min(settings.n_batch, settings.slots * (1 + drafted(settings)))


def output_part(arch: ArchitectureConfig, settings: Settings) -> Part:
    """One row a slot at start (and an embedding, when asked for); `later` what it grows to."""
    row = arch.n_vocab * F32 + (arch.n_embd * F32 if settings.embedding else 0)
    later = row * max(0, outputs_max(settings) - settings.slots)
    return Part(device=RAM, component="output", committed=row * settings.slots, later=later)
