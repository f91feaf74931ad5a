"""What a model of an architecture that we do not know keeps beside plain attention, as far as its keys say. Pure.

A bound: each is counted in every layer that may have it. Source: llama.cpp b11434, src/llama-hparams.cpp (`n_embd_r`,
`n_embd_s`), src/llama-kv-cache-dsa.cpp (the indexer's keys), src/models (hyper-connections).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.ir.config import ArchitectureConfig

_CONVOLUTION = 4
"""Length of the convolution before linear attention, where the file gives none."""

_STREAMS = {"gemma3n": 4}
"""Rows of the residual stream where the file does not say it."""


def widened(architecture: ArchitectureConfig, values: Mapping[str, Any]) -> ArchitectureConfig:
    """`architecture` with states of linear attention, keys of an indexer, and a residual stream of several rows.

    `values`: the header's. Linear attention keeps a square of a head's width for each head; an indexer keeps one more
    key a token, here in every head.
    """
    a = architecture

    def size(key: str) -> int:
        value = values.get(f"{a.arch}.{key}", 0)
        numbers = value if isinstance(value, tuple) else (value,)
        return max((n for n in numbers if isinstance(n, int)), default=0)

    changes: dict[str, int] = {}
    linear = a.full_attention_interval or f"{a.arch}.attention.recurrent_layers" in values
    state = size("kda.head_dim") or (a.key_length if linear else 0)
    if state and not a.ssm_d_inner:
        heads = a.n_head if isinstance(a.n_head, int) else max(a.n_head, default=0)
        changes |= {"ssm_d_state": state, "ssm_d_inner": state * heads, "ssm_n_group": heads}
        changes["ssm_d_conv"] = a.ssm_d_conv or _CONVOLUTION
    indexer = size("attention.indexer.key_length")
    if indexer:
        changes |= {"key_length": a.key_length + indexer, "indexer_key_length": 0}
        changes |= {"kv_lora_rank": a.kv_lora_rank + indexer} if a.kv_lora_rank else {}
    streams = max(size("hyper_connection.count"), size("altup.num_inputs"), _STREAMS.get(a.arch, 0))
    if streams > 1:
        changes["n_deepstack"] = max(a.n_deepstack, streams - 1)
    return msgspec.structs.replace(a, **changes) if changes else a
