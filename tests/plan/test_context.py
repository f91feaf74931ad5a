"""Contexts are padded and split as llama.cpp does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan import settle
from launcher.plan.memory.layout import resolve_context

from .fleets import LLAMA_8B, SMOLLM2, model_file, server, with_fields


@pytest.mark.parametrize(
    ("n", "slots", "unified", "expected"),
    [
        (4096, 1, False, (4096, 4096, 4096)),
        (8192, 4, True, (8192, 8192, 8192)),
        (5000, 3, False, (5376, 1792, 1792)),
        (512, 4, False, (1024, 256, 256)),
        (0, 1, False, (8192, 8192, 8192)),
        (16384, 1, False, (16384, 16384, 8192)),
    ],
)
def test_context_is_padded_and_split(n: int, slots: int, unified: bool, expected: tuple[int, int, int]) -> None:
    """The cases of MEMORY.md, the 128-token embedder slot, and a slot beyond the training context of 8192."""
    context = resolve_context(
        n=n,
        slots=slots,
        unified=unified,
        n_batch=2048,
        n_ubatch=512,
        causal=True,
        embedding=False,
        n_ctx_train=8192,
    )
    assert (context.n_ctx, context.n_ctx_seq, context.n_ctx_per_slot) == expected


@pytest.mark.parametrize(
    ("n", "causal", "embedding", "n_batch", "n_ubatch"),
    [
        (4096, True, False, 2048, 512),
        (300, True, False, 300, 300),
        (300, False, False, 2048, 512),
        (4096, True, True, 512, 512),
        (300, False, True, 512, 512),
    ],
)
def test_batches_are_clamped(n: int, causal: bool, embedding: bool, n_batch: int, n_ubatch: int) -> None:
    """To the requested context when causal, to the micro-batch when embedding."""
    context = resolve_context(
        n=n,
        slots=1,
        unified=False,
        n_batch=2048,
        n_ubatch=512,
        causal=causal,
        embedding=embedding,
        n_ctx_train=8192,
    )
    assert (context.n_batch, context.n_ubatch) == (n_batch, n_ubatch)


@given(
    n=st.integers(1, 1_000_000),
    slots=st.integers(1, 256),
    unified=st.booleans(),
    trained=st.integers(1, 1_000_000),
)
def test_padding_laws(n: int, slots: int, unified: bool, trained: int) -> None:
    """Everything is a multiple of 256, never less than asked for in a slot, and streams add up to the whole."""
    context = resolve_context(
        n=n,
        slots=slots,
        unified=unified,
        n_batch=2048,
        n_ubatch=512,
        causal=True,
        embedding=False,
        n_ctx_train=trained,
    )
    assert context.n_ctx % 256 == 0
    assert context.n_ctx_seq % 256 == 0
    assert context.n_ctx_seq >= n // (1 if unified else slots)
    assert context.n_ctx == context.n_ctx_seq * (1 if unified else slots)
    assert context.n_ctx_per_slot <= trained
    assert 1 <= context.n_ubatch <= context.n_batch <= 2048


def test_absent_slots_mean_four_on_a_unified_cache() -> None:
    """llama-server's own auto, pinned."""
    settings = settle(server(slots=None, n_ctx=8192), model_file(SMOLLM2)).settings
    assert (settings.slots, settings.kv_unified, settings.streams, settings.n_ctx_per_slot) == (4, True, 1, 8192)


def test_slots_mean_separate_caches_unless_unified_is_asked_for() -> None:
    """-np N splits; with kv_unified it does not."""
    split = settle(server(slots=2, n_ctx=8192), model_file(SMOLLM2)).settings
    pooled = settle(server(slots=2, n_ctx=8192, kv_unified=True), model_file(SMOLLM2)).settings
    assert (split.streams, split.n_ctx_per_slot) == (2, 4096)
    assert (pooled.streams, pooled.n_ctx_per_slot) == (1, 8192)


def test_context_a_slot_is_multiplied() -> None:
    """n_ctx_per_slot is for each slot."""
    settings = settle(server(slots=3, n_ctx=None, n_ctx_per_slot=4096), model_file(LLAMA_8B)).settings
    assert (settings.n_ctx, settings.n_ctx_per_slot) == (12288, 4096)


def test_no_context_means_the_training_context() -> None:
    """Neither field written."""
    assert settle(server(n_ctx=None), model_file(SMOLLM2)).settings.n_ctx == 8192


def test_context_over_training_is_capped_and_said() -> None:
    """The allocation stays, the slot does not get it."""
    settled = settle(server(n_ctx=32768), model_file(SMOLLM2), key="servers.a")
    assert (settled.settings.n_ctx, settled.settings.n_ctx_per_slot) == (32768, 8192)
    (finding,) = settled.findings
    assert (finding.code, finding.severity, finding.key) == (
        "plan/context-over-training",
        "warning",
        "servers.a.n_ctx",
    )
    assert "32768" in finding.message
    assert "8192" in finding.message


@pytest.mark.parametrize("fields", [{"n_ctx": 8192}, {"slots": 4, "kv_unified": True, "n_ctx": 32768}, {"n_ctx": 8000}])
def test_context_within_training_is_not_mentioned(fields: dict[str, int]) -> None:
    """Nor is a pool that its slots can use up together, nor padding."""
    assert settle(server(**fields), model_file(SMOLLM2)).findings == ()


def test_slots_out_of_range_are_an_error() -> None:
    """llama-server takes 1 to 256; the plan goes on with the nearest number."""
    for asked, used in ((0, 1), (257, 256)):
        settled = settle(server(slots=asked), model_file(SMOLLM2))
        assert settled.settings.slots == used
        assert [f.code for f in settled.findings] == ["plan/slots-range"]


def test_both_context_fields_are_an_error() -> None:
    """Exactly one of n_ctx and n_ctx_per_slot."""
    settled = settle(server(n_ctx=4096, n_ctx_per_slot=2048), model_file(SMOLLM2))
    assert [f.code for f in settled.findings] == ["plan/context-twice"]


def test_negative_context_is_an_error() -> None:
    """It is not taken for the training context silently."""
    assert [f.code for f in settle(server(n_ctx=-1), model_file(SMOLLM2)).findings] == ["plan/context-range"]


def test_encoders_keep_their_batch_above_the_context() -> None:
    """A non-causal model's batch is not clamped to its context."""
    arch = with_fields(SMOLLM2, arch="bert", causal=False, n_ctx_train=512)
    settings = settle(server(n_ctx=256, n_ubatch=1024, embedding=False), model_file(arch)).settings
    assert (settings.n_batch, settings.n_ubatch) == (2048, 1024)
