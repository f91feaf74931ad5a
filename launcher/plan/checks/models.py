"""Whether model, draft, projector and experts go together. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from launcher.errors import Finding, Fix
from launcher.ir.catalog import ModelFile
from launcher.ir.plan import DeviceMemory, ServerPlan
from launcher.plan.builds import SPECULATES_EVERYWHERE, drafts_further
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.memory import SHARING_MODES, is_mla, layers, not_compared
from launcher.plan.memory.assemble import file_identity
from launcher.plan.memory.placement import torn
from launcher.sizes import gib

VOCABULARY_TOLERANCE = 128
"""Tokens by which draft and target may differ (SPEC_VOCAB_MAX_SIZE_DIFFERENCE, common/speculative.cpp)."""


def check_experts(planning: Planning) -> Iterator[Finding]:
    """`plan/moe-experts`: more experts than there are aborts the server, too few give fluent garbage."""
    for server in planning.running:
        used, arch, key = server.config.experts_used, server.model.architecture, f"{server.key}.experts_used"
        if used is None:
            continue
        if not arch.n_expert:
            message = f"{server.config.model} has no experts"
            yield finding("error", "plan/moe-experts", key, message, fixes=(_remove(server, "experts_used"),))
        elif not 1 <= used <= arch.n_expert:
            message = f"experts_used={used}, but {server.config.model} has {arch.n_expert} experts"
            fixes = (set_field(server, "experts_used", arch.n_expert_used or arch.n_expert),)
            yield finding("error", "plan/moe-experts", key, message, fixes=fixes)
        elif (
            server.draft is not None
            and server.draft.architecture.arch == arch.arch
            and not (used <= server.draft.architecture.n_expert)
        ):
            experts = server.draft.architecture.n_expert or "no"
            message = f"experts_used={used} holds for the draft, too ({arch.arch}), which has {experts} experts"
            yield finding("error", "plan/moe-experts", key, message, fixes=(_remove(server, "experts_used"),))
        elif used < arch.n_expert_used_min:
            message = (
                f"with {used} experts {server.config.model} is fluent but wrong: it needs {arch.n_expert_used_min}"
            )
            fixes = (set_field(server, "experts_used", arch.n_expert_used_min),)
            yield finding("warning", "plan/moe-experts", key, message, fixes=fixes)


def _remove(server: ServerPlan, field: str) -> Fix:
    """The override that takes a field away."""
    return set_field(server, field, "null")


def check_draft(planning: Planning) -> Iterator[Finding]:
    """`plan/draft-vocabulary`: the draft's tokens are not the target's, so it would be dropped silently."""
    for server in planning.running:
        if server.draft is None:
            continue
        target, draft = server.model.architecture, server.draft.architecture
        reasons = []
        if abs(target.n_vocab - draft.n_vocab) > VOCABULARY_TOLERANCE:
            reasons.append(f"{draft.n_vocab} tokens, the target has {target.n_vocab}")
        if target.tokenizer != draft.tokenizer:
            reasons.append(f"a {draft.tokenizer} tokenizer, the target's is {target.tokenizer}")
        if None not in (target.bos_token_id, draft.bos_token_id) and target.bos_token_id != draft.bos_token_id:
            reasons.append(f"BOS {draft.bos_token_id}, the target's is {target.bos_token_id}")
        if reasons:
            message = f"{server.draft.model} cannot draft for {server.config.model}: it has {'; '.join(reasons)}"
            yield finding(
                "error", "plan/draft-vocabulary", f"{server.key}.draft", message, fixes=(_remove(server, "draft"),)
            )


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
                yield finding("error", "plan/speculation-unsupported", key, message, fixes=(_remove(server, field),))


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


def check_draft_kind(planning: Planning) -> Iterator[Finding]:
    """`plan/draft-kind`: a draft without a model, which only the model's own layers for further tokens can be."""
    for server in planning.running:
        draft, arch, build = server.config.draft, server.model.architecture, server.settings.build
        if draft is None or draft.file is not None:
            continue
        key, fixes = f"{server.key}.draft", (_remove(server, "draft"),)
        if draft.kind != "mtp" or draft.model or draft.quantization:
            message = f"a draft of kind {draft.kind} that is a model needs both: write its model and quantization"
            yield finding("error", "plan/draft-kind", key, message, fixes=fixes)
        elif not arch.n_layer_nextn:
            message = f"{server.config.model} has no layers for further tokens: kind mtp needs them, or a model of such"
            yield finding("error", "plan/draft-kind", key, message, fixes=fixes)
        elif not drafts_further(arch, build):
            message = f"b{build} is not known to draft with the layers for further tokens of {arch.arch}"
            yield finding("warning", "plan/draft-kind", key, message, fixes=fixes)


def check_projector(planning: Planning) -> Iterator[Finding]:
    """`plan/projector-missing`: images are asked for, but the model has no projector; or its compute is unknown."""
    for server in planning.running:
        if not server.config.projector:
            continue
        key = f"{server.key}.projector"
        if server.projector is None:
            message = f"{server.config.model} has no projector in the catalogue"
            fixes = (set_field(server, "projector", "false"),)
            yield finding("error", "plan/projector-missing", key, message, fixes=fixes)
        elif not server.projector.compute_bytes and server.projector.encoder is None:
            here = "of a kind that was not compared" if server.projector.source == "gguf" else "not at hand"
            message = f"the projector's compute buffer is not declared and not counted: its file is {here}"
            yield finding("note", "plan/projector-compute", f"models.{server.config.model}.projector", message)


def check_compute(planning: Planning) -> Iterator[Finding]:
    """`plan/compute-bound`: the graph of a model is not known, or rules take its layers apart."""
    for server in planning.running:
        yield from unsized(server.model, server.memory, f"{server.key}.model")
        if torn(server.model.architecture.n_layer, server.settings):
            message = (
                "these rules take attention or norms of layers away from their K/V, which is then copied: compute "
                "buffers may be larger than planned; `--prove` gives the server's own figures"
            )
            yield finding("note", "plan/compute-bound", f"{server.key}.tensor_placement", message)


def unsized(model: ModelFile, memory: Sequence[DeviceMemory], key: str = "") -> Iterator[Finding]:
    """`plan/compute-bound` for a model whose architecture no server was compared with: what is said is a bound."""
    why = not_compared(model.architecture)
    if why:
        state = gib(sum(m.kv_bytes + m.recurrent_bytes for m in memory))
        compute = gib(sum(m.compute_bytes for m in memory))
        message = (
            f"{why}: {compute} for the compute buffer and {state} for K/V and states are bounds from its measures; "
            "`--prove` gives the server's own figures"
        )
        yield finding("note", "plan/compute-bound", key, message)


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
            yield finding("note", "plan/file-shared", key, message)
            continue
        size = gib(model.model.file_bytes)
        message = f"{names} load the same file of {size}, {len(copies)} of them into memory of their own"
        locked = any(s.config.load_mode == "mlock" for s in copies)
        mode = "mmap+mlock" if locked else "mmap"
        together = " ".join(set_field(s, "load_mode", mode).override for s in copies)
        fixes = (Fix(override=together, effect="maps the file, so that its pages are shared"),)
        yield finding("warning", "plan/model-duplicated", key, message, fixes=fixes)
