"""Contexts, batches and caches of a server. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.plan.checks.planning import Planning, finding, set_field, set_fields
from launcher.plan.memory.compute_bound import PLAIN
from launcher.plan.memory.kv import block_of
from launcher.plan.memory.layer_kinds import EMBEDS_ONLY, key_length, value_length

WHOLE_TEXT = 8192
"""Tokens a slot that an embedder is urged to: texts beyond are rare, and its K/V is not free."""
CHOSEN = 2048
"""A slot of so many tokens that was written as such was chosen."""
SLOW_V = frozenset({"q4_0", "q4_1", "iq4_nl"})


def check_slot_context(planning: Planning) -> Iterator[Finding]:
    """`plan/slot-context`: an embedder's slot takes less than the model does."""
    for server in planning.running:
        settings, trained = server.settings, server.model.architecture.n_ctx_train
        wanted = min(trained, WHOLE_TEXT)
        asked = server.config.n_ctx
        chosen = not asked and settings.n_ctx_per_slot >= CHOSEN
        if not settings.embedding or settings.n_ctx_per_slot >= wanted or chosen:
            continue
        padding = ""
        if asked and not settings.kv_unified and asked // settings.slots < settings.n_ctx_seq:
            padding = f" ({asked} over {settings.slots} slots is {asked // settings.slots}, padded to 256s)"
        field, value = ("n_ctx_per_slot", wanted)
        if asked:
            field, value = ("n_ctx", wanted * settings.slots)
        yield finding(
            "warning",
            "plan/slot-context",
            f"{server.key}.{'n_ctx' if asked else 'n_ctx_per_slot'}",
            f"a slot has {settings.n_ctx_per_slot} tokens{padding}, the model takes {trained}",
            fixes=(set_field(server, field, value),),
        )


def check_shared_context(planning: Planning) -> Iterator[Finding]:
    """`plan/context-shared`: slots were left out, so that all of them share one context."""
    for server in planning.running:
        settings = server.settings
        if server.config.slots is not None or not settings.kv_unified or settings.slots < 2:
            continue
        each = settings.n_ctx // settings.slots
        own = {"slots": settings.slots, "n_ctx_per_slot": settings.n_ctx_per_slot}
        yield finding(
            "note",
            "plan/context-shared",
            f"{server.key}.slots",
            f"slots were left out: {settings.slots} share {settings.n_ctx} tokens, {each} each when all are busy; "
            "beyond that llama-server answers 500",
            fixes=(
                set_fields(server, {"n_ctx": "null", **own}, f"gives each {settings.n_ctx_per_slot}"),
                set_field(server, "slots", 1, "one request after another has it all"),
            ),
        )


def check_encoder(planning: Planning) -> Iterator[Finding]:
    """`plan/embedding-only`: a model that makes embeddings and nothing else is told not to."""
    for server in planning.running:
        if server.config.embedding is False and server.model.architecture.arch in EMBEDS_ONLY:
            message = f"{server.config.model} makes embeddings and nothing else"
            fixes = (set_field(server, "embedding", "true"),)
            yield finding("error", "plan/embedding-only", f"{server.key}.embedding", message, fixes=fixes)


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


def check_role_slots(planning: Planning) -> Iterator[Finding]:
    """`plan/role-slots`: more slots than a role of the server may have (`routing.slots_max`), with the reason."""
    limits = planning.fleet.routing.slots_max
    for server in planning.running:
        stated = [(limits[n].slots, n) for n in (server.name, *server.config.roles) if n in limits]
        most, role = min(stated, default=(server.settings.slots, ""))
        if server.settings.slots > most:
            yield finding(
                "warning",
                "plan/role-slots",
                f"{server.key}.slots",
                f"{server.settings.slots} slots, and {role} is to have {most} at most: {limits[role].reason}",
                fixes=(set_field(server, "slots", most),),
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
        whole = settings.n_ctx_per_slot
        short = [name for name in ("n_batch", "n_ubatch") if getattr(server.config, name) < whole]
        if settings.embedding and min(settings.n_batch, settings.n_ubatch) < whole:
            yield finding(
                "warning",
                "plan/embedding-batch",
                f"{server.key}.n_ubatch",
                f"a text is embedded in one micro-batch of {settings.n_ubatch} tokens, a slot takes "
                f"{settings.n_ctx_per_slot}: longer texts are refused",
                fixes=(set_fields(server, dict.fromkeys(short, whole)),),
            )


def check_flash_attention(planning: Planning) -> Iterator[Finding]:
    """`plan/flash-attention-required`: a quantised V cache without flash attention makes the server exit."""
    for server in planning.running:
        settings = server.settings
        if settings.cache_type_v not in PLAIN and not settings.flash_attention:
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
            _, block = block_of(kind, server.settings)
            if width % block:
                yield finding(
                    "error",
                    "plan/cache-type-block",
                    f"{server.key}.{field}",
                    f"heads of {width} values are not whole blocks of {block}, as {kind} needs",
                    fixes=(set_field(server, field, "f16"),),
                )
