"""Contexts as llama.cpp pads and splits them. Pure."""

from __future__ import annotations

import msgspec

SLOTS_MAX = 256
"""LLAMA_MAX_SEQ: more slots are refused (llama-context.cpp)."""
AUTO_SLOTS = 4
"""`-np` absent: this many slots on one unified cache (server.cpp)."""
CELL_PAD = 256


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens: whole context, one sequence's share, what a slot may use, and the two batch sizes."""

    n_ctx: int
    n_ctx_seq: int
    n_ctx_per_slot: int
    n_batch: int
    n_ubatch: int


def pad(n: int, to: int = CELL_PAD) -> int:
    """The next multiple of `to` at or above `n` (GGML_PAD)."""
    return -(-n // to) * to


def resolve_context(
    *, n: int, slots: int, unified: bool, n_batch: int, n_ubatch: int, causal: bool, embedding: bool, n_ctx_train: int
) -> Context:
    """The context for `n` requested tokens (0 = the training context) over `slots`.

    Batches are clamped to `n` before it is padded, and only for causal models; `--embedding` first clamps the batch
    to the micro-batch. Source: llama-context.cpp llama_context::llama_context, server.cpp, server-context.cpp.
    """
    n = n or n_ctx_train
    batch = min(n_batch, n_ubatch) if embedding else n_batch
    batch = min(n, batch) if causal else batch
    n_ctx = pad(n)
    n_seq = n_ctx if unified else pad(n_ctx // slots)
    return Context(
        n_ctx=n_ctx if unified else n_seq * slots,
        n_ctx_seq=n_seq,
        n_ctx_per_slot=min(n_seq, n_ctx_train) if n_ctx_train else n_seq,
        n_batch=batch,
        n_ubatch=min(batch, n_ubatch),
    )
