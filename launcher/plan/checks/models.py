"""Checks that a server's model, draft, projector, experts, contexts and caches fit each other. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.architectures import traits
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import DeviceMemory, ServerPlan
from launcher.plan.builds import SPECULATES_EVERYWHERE, drafts_further
from launcher.plan.checks.planning import Planning, set_fields
from launcher.plan.memory.caches import block_of
from launcher.plan.memory.compute import PLAIN, not_compared
from launcher.plan.memory.layout import is_mla, key_length, layers, torn, value_length
from launcher.plan.memory.process import file_identity
from launcher.plan.memory.weights import SHARING_MODES
from launcher.sizes import gib

VOCABULARY_TOLERANCE = 128
"""Tokens by which draft and target may differ (SPEC_VOCAB_MAX_SIZE_DIFFERENCE, common/speculative.cpp)."""


def check_experts(planning: Planning) -> Iterator[Finding]:
    """`plan/moe-experts`: more experts than the model has abort the server; too few give fluent nonsense."""
    for server in planning.running:
        used, arch, model = server.config.experts_used, server.model.architecture, server.config.model
        drafting = server.draft.architecture if server.draft is not None else None
        if used is None:
            continue
        severity: Severity = "error"
        instead: object = "null"
        if not arch.n_expert:
            message = f"{model} has no experts"
        elif not 1 <= used <= arch.n_expert:
            message = f"experts_used={used}, but {model} has {arch.n_expert} experts"
            instead = arch.n_expert_used or arch.n_expert
        elif drafting is not None and drafting.arch == arch.arch and used > drafting.n_expert:
            experts = drafting.n_expert or "no"
            message = f"experts_used={used} holds for the draft, too ({arch.arch}), which has {experts} experts"
        elif used < arch.n_expert_used_min:
            message = f"with {used} experts {model} is fluent but wrong: it needs {arch.n_expert_used_min}"
            severity, instead = "warning", arch.n_expert_used_min
        else:
            continue
        fixes = (set_fields(server, experts_used=instead),)
        yield fault("plan/moe-experts", f"{server.key}.experts_used", message, fixes=fixes, severity=severity)


def check_draft(planning: Planning) -> Iterator[Finding]:
    """`plan/draft-vocabulary`: the draft's vocabulary is not the target's, and it would be dropped silently.

    `plan/draft-kind`: a draft without a model, which only a model's own next-token-prediction layers can be.
    """
    for server in planning.running:
        draft, arch, build = server.config.draft, server.model.architecture, server.settings.build
        key, fixes, model = f"{server.key}.draft", (set_fields(server, draft="null"),), server.config.model
        if server.draft is not None:
            reasons = _unlike(arch, server.draft.architecture)
            if reasons:
                message = f"{server.draft.model} cannot draft for {model}: it has {'; '.join(reasons)}"
                yield fault("plan/draft-vocabulary", key, message, fixes=fixes)
        elif draft is None or draft.file is not None:
            continue
        elif draft.kind != "mtp" or draft.model or draft.quantization:
            message = f"a draft of kind {draft.kind} that is a model needs both: write its model and quantization"
            yield fault("plan/draft-kind", key, message, fixes=fixes)
        elif not arch.n_layer_nextn:
            message = f"{model} has no layers for further tokens: kind mtp needs them, or a model of such"
            yield fault("plan/draft-kind", key, message, fixes=fixes)
        elif not drafts_further(arch, build):
            message = f"b{build} is not known to draft with the layers for further tokens of {arch.arch}"
            yield fault("plan/draft-kind", key, message, fixes=fixes, severity="warning")


def _unlike(target: ArchitectureConfig, draft: ArchitectureConfig) -> list[str]:
    reasons = []
    if abs(target.n_vocab - draft.n_vocab) > VOCABULARY_TOLERANCE:
        reasons.append(f"{draft.n_vocab} tokens, the target has {target.n_vocab}")
    if target.tokenizer != draft.tokenizer:
        reasons.append(f"a {draft.tokenizer} tokenizer, the target's is {target.tokenizer}")
    if None not in (target.bos_token_id, draft.bos_token_id) and target.bos_token_id != draft.bos_token_id:
        reasons.append(f"BOS {draft.bos_token_id}, the target's is {target.bos_token_id}")
    return reasons


def check_speculation(planning: Planning) -> Iterator[Finding]:
    """`plan/speculation-unsupported`: embeddings have nothing to draft; old builds cannot go back in every model.

    Tried on b10068 and b11434: n-grams and drafts are accepted on recurrent, latent, sliding and multimodal models.
    """
    for server in planning.running:
        for field in ("draft", "ngram"):
            if getattr(server.config, field) is None:
                continue
            why = _no_speculation(server)
            if why:
                message = f"{server.config.model} {why}: speculation is not supported"
                key = f"{server.key}.{field}"
                yield fault(
                    "plan/speculation-unsupported", key, message, fixes=(set_fields(server, **{field: "null"}),)
                )


def _no_speculation(server: ServerPlan) -> str:
    """Why this server cannot speculate; "" when it can."""
    if server.settings.embedding:
        return "serves embeddings here"
    arch, build = server.model.architecture, server.settings.build
    if not 0 < build < SPECULATES_EVERYWHERE:
        return ""
    of_build = f", and b{build} is older than b{SPECULATES_EVERYWHERE}, the first that is known to go back in such"
    if layers(arch).recurrent:
        return f"has recurrent layers{of_build}"
    if server.config.projector:
        return f"reads images here{of_build}"
    return f"has latent attention (MLA){of_build}" if is_mla(arch) else ""


def check_projector(planning: Planning) -> Iterator[Finding]:
    """`plan/projector-missing`: images are asked for and there is no projector, or its compute is unknown."""
    for server in planning.running:
        if not server.config.projector:
            continue
        key = f"{server.key}.projector"
        if server.projector is None:
            message = f"{server.config.model} has no projector in the catalogue"
            fixes = (set_fields(server, projector="false"),)
            yield fault("plan/projector-missing", key, message, fixes=fixes)
        elif not server.projector.compute_bytes and server.projector.encoder is None:
            here = "of a kind that was not compared" if server.projector.source == "gguf" else "not at hand"
            message = f"the projector's compute buffer is not declared and not counted: its file is {here}"
            yield fault("plan/projector-compute", f"models.{server.config.model}.projector", message, severity="note")


def check_compute(planning: Planning) -> Iterator[Finding]:
    """`plan/compute-bound`: the model's graph is unknown, or rules take its layers apart."""
    for server in planning.running:
        yield from unsized(server.model, server.memory, f"{server.key}.model")
        if torn(server.model.architecture.n_layer, server.settings):
            message = (
                "these rules take attention or norms of layers away from their K/V, which is then copied: compute "
                "buffers may be larger than planned; `--prove` gives the server's own figures"
            )
            yield fault("plan/compute-bound", f"{server.key}.tensor_placement", message, severity="note")


def unsized(model: ModelFile, memory: Sequence[DeviceMemory], key: str = "") -> Iterator[Finding]:
    """`plan/compute-bound` for an architecture that was compared with no server: the figures are a bound."""
    why = not_compared(model.architecture)
    if why:
        state = gib(sum(m.kv_bytes + m.recurrent_bytes for m in memory))
        compute = gib(sum(m.compute_bytes for m in memory))
        message = (
            f"{why}: {compute} for the compute buffer and {state} for K/V and states are bounds from its measures; "
            "`--prove` gives the server's own figures"
        )
        yield fault("plan/compute-bound", key, message, severity="note")


def check_shared_files(planning: Planning) -> Iterator[Finding]:
    """`plan/file-shared`, `plan/model-duplicated`: one file served by several servers."""
    users: defaultdict[str, list[ServerPlan]] = defaultdict(list)
    for server in planning.running:
        users[file_identity(server.model)].append(server)
    for servers in users.values():
        groups = {s.config.exclusive for s in servers}
        if len(servers) < 2 or (len(groups) == 1 and None not in groups):
            continue
        names = ", ".join(s.name for s in servers)
        copies = [s for s in servers if s.config.load_mode not in SHARING_MODES]
        model = servers[0]
        key = f"{model.key}.load_mode"
        if not copies:
            message = f"{names} map one file of {gib(model.model.file_bytes)}: its pages are counted once"
            yield fault("plan/file-shared", key, message, severity="note")
            continue
        size = gib(model.model.file_bytes)
        message = f"{names} load the same file of {size}, {len(copies)} of them into memory of their own"
        locked = any(s.config.load_mode == "mlock" for s in copies)
        mode = "mmap+mlock" if locked else "mmap"
        together = " ".join(set_fields(s, load_mode=mode).override for s in copies)
        fixes = (Fix(override=together, effect="maps the file, so that its pages are shared"),)
        yield fault("plan/model-duplicated", key, message, fixes=fixes, severity="warning")


WHOLE_TEXT = 8192
"""Tokens per slot up to which an embedder is advised to grow: longer texts are rare, and K/V takes memory."""
CHOSEN = 2048
"""A slot with at least so many tokens, written as such, counts as chosen."""
SLOW_V = frozenset({"q4_0", "q4_1", "iq4_nl"})


def check_embedders(planning: Planning) -> Iterator[Finding]:
    """`plan/slot-context`, `plan/embedding-batch`: an embedder's slot or batch takes less than the model does.

    `plan/embedding-only`: a model that makes embeddings and nothing else is told not to.
    """
    for server in planning.running:
        config, settings, slot = server.config, server.settings, server.settings.n_ctx_per_slot
        if config.embedding is False and not traits(server.model.architecture.arch).writes:
            message = f"{config.model} makes embeddings and nothing else"
            fixes = (set_fields(server, embedding="true"),)
            yield fault("plan/embedding-only", f"{server.key}.embedding", message, fixes=fixes)
        if not settings.embedding:
            continue
        yield from _slot_context(server)
        if min(settings.n_batch, settings.n_ubatch) < slot:
            short = [name for name in ("n_batch", "n_ubatch") if getattr(config, name) < slot]
            message = (
                f"a text is embedded in one micro-batch of {settings.n_ubatch} tokens, a slot takes {slot}: "
                "longer texts are refused"
            )
            fixes = (set_fields(server, **dict.fromkeys(short, slot)),)
            yield fault("plan/embedding-batch", f"{server.key}.n_ubatch", message, fixes=fixes, severity="warning")


def _slot_context(server: ServerPlan) -> Iterator[Finding]:
    """`plan/slot-context`, unless the context was chosen."""
    settings, trained, asked = server.settings, server.model.architecture.n_ctx_train, server.config.n_ctx
    slot, wanted = settings.n_ctx_per_slot, min(trained, WHOLE_TEXT)
    if slot >= wanted or (not asked and slot >= CHOSEN):
        return
    padding = ""
    if asked and not settings.kv_unified and asked // settings.slots < settings.n_ctx_seq:
        padding = f" ({asked} over {settings.slots} slots is {asked // settings.slots}, padded to 256s)"
    field, value = ("n_ctx", wanted * settings.slots) if asked else ("n_ctx_per_slot", wanted)
    message = f"a slot has {slot} tokens{padding}, the model takes {trained}"
    fixes = (set_fields(server, **{field: value}),)
    yield fault("plan/slot-context", f"{server.key}.{field}", message, fixes=fixes, severity="warning")


def check_shared_context(planning: Planning) -> Iterator[Finding]:
    """`plan/context-shared`: `slots` is not set, so that all slots share one context."""
    for server in planning.running:
        settings = server.settings
        if server.config.slots is not None or not settings.kv_unified or settings.slots < 2:
            continue
        each = settings.n_ctx // settings.slots
        own = {"slots": settings.slots, "n_ctx_per_slot": settings.n_ctx_per_slot}
        message = (
            f"slots were left out: {settings.slots} share {settings.n_ctx} tokens, {each} each when all are busy; "
            "beyond that llama-server answers 500"
        )
        fixes = (
            set_fields(server, f"gives each {settings.n_ctx_per_slot}", n_ctx="null", **own),
            set_fields(server, "one request after another has it all", slots=1),
        )
        yield fault("plan/context-shared", f"{server.key}.slots", message, fixes=fixes, severity="note")


def check_roles(planning: Planning) -> Iterator[Finding]:
    """`plan/role-context`: a slot has fewer tokens than one of the server's roles needs (`routing.n_ctx_min`).

    `plan/role-slots`: more slots than one of the server's roles may have (`routing.slots_max`), with the reason.
    """
    routing = planning.fleet.routing
    for server in planning.running:
        config, settings = server.config, server.settings
        names = (server.name, *config.roles)
        role = max(names, key=lambda name: routing.n_ctx_min.get(name, 0))
        need, slot = routing.n_ctx_min.get(role, 0), settings.n_ctx_per_slot
        if slot < need:
            trained = server.model.architecture.n_ctx_train
            field, value = ("n_ctx", need * settings.slots) if config.n_ctx else ("n_ctx_per_slot", need)
            beyond = 0 < trained < need
            message = f"a slot has {slot} tokens, the role {role} needs {need}"
            notes = (f"{config.model} was trained with {trained}: another model is needed",) if beyond else ()
            fixes = () if beyond else (set_fields(server, **{field: value}),)
            yield fault("plan/role-context", f"{server.key}.{field}", message, *notes, fixes=fixes)
        stated = [(routing.slots_max[name].slots, name) for name in names if name in routing.slots_max]
        most, role = min(stated, default=(settings.slots, ""))
        if settings.slots > most:
            reason = routing.slots_max[role].reason
            message = f"{settings.slots} slots, and {role} is to have {most} at most: {reason}"
            fixes = (set_fields(server, slots=most),)
            yield fault("plan/role-slots", f"{server.key}.slots", message, fixes=fixes, severity="warning")


def check_cache_types(planning: Planning) -> Iterator[Finding]:
    """`plan/slow-cache-type`: a V cache of four bits saves memory and costs speed.

    `plan/flash-attention-required`: a quantised V cache without flash attention makes the server exit.
    `plan/cache-type-block`: heads are not whole blocks of the K or V type, which llama.cpp refuses, of encoders too,
    which have no cache (llama-context.cpp llama_init_from_model).
    """
    for server in planning.running:
        settings, arch = server.settings, server.model.architecture
        kind, key = settings.cache_type_v, f"{server.key}.cache_type_v"
        if kind in SLOW_V and not settings.embedding:
            message = f"a V cache of {kind} is slow: every attention unpacks it; q8_0 takes about twice the memory"
            fixes = (set_fields(server, cache_type_v="q8_0"),)
            yield fault("plan/slow-cache-type", key, message, fixes=fixes, severity="note")
        if kind not in PLAIN and not settings.flash_attention:
            message = f"a V cache of {kind} needs flash attention, which is off"
            either = (set_fields(server, flash_attention="on"), set_fields(server, cache_type_v="f16"))
            key = f"{server.key}.flash_attention"
            yield fault("plan/flash-attention-required", key, message, fixes=either)
        for field, of, width in (
            ("cache_type_k", settings.cache_type_k, key_length(arch)),
            ("cache_type_v", settings.cache_type_v, value_length(arch)),
        ):
            _, block = block_of(of, settings)
            if width % block:
                message = f"heads of {width} values are not whole blocks of {block}, as {of} needs"
                fixes = (set_fields(server, **{field: "f16"}),)
                yield fault("plan/cache-type-block", f"{server.key}.{field}", message, fixes=fixes)


CHECKS = (
    check_experts,
    check_draft,
    check_speculation,
    check_projector,
    check_compute,
    check_shared_files,
    check_embedders,
    check_shared_context,
    check_roles,
    check_cache_types,
)
