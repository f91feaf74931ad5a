"""Contexts, batches and caches of a server. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.memory.compute_bound import QUANTISED
from launcher.plan.memory.kv import ROW
from launcher.plan.memory.layers import key_length, value_length

SLOW_V = frozenset({"q4_0", "q4_1", "iq4_nl"})


def check_slot_context(planning: Planning) -> Iterator[Finding]:
    """`plan/slot-context`: an embedder's slot takes less than the model does."""
    for server in planning.running:
        settings, trained = server.settings, server.model.architecture.n_ctx_train
        if not settings.embedding or settings.n_ctx_per_slot >= trained:
            continue
        asked = server.config.n_ctx
        padding = ""
        if asked and not settings.kv_unified and asked // settings.slots < settings.n_ctx_seq:
            padding = f" ({asked} over {settings.slots} slots is {asked // settings.slots}, padded to 256s)"
        field, value = ("n_ctx_per_slot", trained)
        if asked:
            field, value = ("n_ctx", trained * settings.slots)
        yield finding(
            "warning",
            "plan/slot-context",
            f"{server.key}.{'n_ctx' if asked else 'n_ctx_per_slot'}",
            f"a slot has {settings.n_ctx_per_slot} tokens{padding}, the model takes {trained}",
            fixes=(set_field(server, field, value),),
        )


def check_role_context(planning: Planning) -> Iterator[Finding]:
    """`plan/role-context`: a slot has fewer tokens than a role of the server needs (`routing.n_ctx_min`)."""
    for server in planning.running:
        needs = {n: planning.fleet.routing.n_ctx_min.get(n, 0) for n in (server.name, *server.config.roles)}
        role = max(needs, key=needs.__getitem__)
        settings, need = server.settings, needs[role]
        if settings.n_ctx_per_slot >= need:
            continue
        trained = server.model.architecture.n_ctx_train
        asked = server.config.n_ctx
        field, value = ("n_ctx", need * settings.slots) if asked else ("n_ctx_per_slot", need)
        yield finding(
            "error",
            "plan/role-context",
            f"{server.key}.{field}",
            f"a slot has {settings.n_ctx_per_slot} tokens, the role {role} needs {need}",
            notes=(f"{server.config.model} was trained with {trained}: another model is needed",)
            if 0 < trained < need
            else (),
            fixes=() if 0 < trained < need else (set_field(server, field, value),),
        )


def check_slow_cache(planning: Planning) -> Iterator[Finding]:
    """`plan/slow-cache-type`: a V cache of four bits saves memory and costs speed."""
    for server in planning.running:
        kind = server.settings.cache_type_v
        if kind in SLOW_V and not server.settings.embedding:
            message = f"a V cache of {kind} is slow: every attention unpacks it; q8_0 takes about twice the memory"
            fixes = (set_field(server, "cache_type_v", "q8_0"),)
            yield finding("note", "plan/slow-cache-type", f"{server.key}.cache_type_v", message, fixes=fixes)


def check_embedding_batch(planning: Planning) -> Iterator[Finding]:
    """`plan/embedding-batch`: an embedder's batch is smaller than a slot's context."""
    for server in planning.running:
        settings = server.settings
        if settings.embedding and min(settings.n_batch, settings.n_ubatch) < settings.n_ctx_per_slot:
            yield finding(
                "warning",
                "plan/embedding-batch",
                f"{server.key}.n_ubatch",
                f"a text is embedded in one micro-batch of {settings.n_ubatch} tokens, a slot takes "
                f"{settings.n_ctx_per_slot}: longer texts are refused",
                fixes=(set_field(server, "n_ubatch", settings.n_ctx_per_slot),),
            )


def check_flash_attention(planning: Planning) -> Iterator[Finding]:
    """`plan/flash-attention-required`: a quantised V cache without flash attention makes the server exit."""
    for server in planning.running:
        settings = server.settings
        if settings.cache_type_v in QUANTISED and not settings.flash_attention:
            yield finding(
                "error",
                "plan/flash-attention-required",
                f"{server.key}.flash_attention",
                f"a V cache of {settings.cache_type_v} needs flash attention, which is off",
                fixes=(set_field(server, "flash_attention", "on"), set_field(server, "cache_type_v", "f16")),
            )


def check_cache_blocks(planning: Planning) -> Iterator[Finding]:
    """`plan/cache-type-block`: heads are not whole blocks of the K or V type, which llama.cpp refuses.

    It refuses encoders too, which have no cache (llama-context.cpp llama_init_from_model).
    """
    for server in planning.running:
        arch = server.model.architecture
        widths = (
            ("cache_type_k", server.settings.cache_type_k, key_length(arch)),
            ("cache_type_v", server.settings.cache_type_v, value_length(arch)),
        )
        for field, kind, width in widths:
            if width % ROW[kind][1]:
                yield finding(
                    "error",
                    "plan/cache-type-block",
                    f"{server.key}.{field}",
                    f"heads of {width} values are not whole blocks of {ROW[kind][1]}, as {kind} needs",
                    fixes=(set_field(server, field, "f16"),),
                )
