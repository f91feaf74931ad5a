"""Meaning → flags: the one table of how a server's choices are spelled for any llama-server build. Pure.

Each row offers alternatives in order of preference; `launcher.render.argv` takes the first whose flags, arity and
values the build accepts. An empty alternative `()` means that a build without the flag is taken to know no other
state: it may be started without a word, and a warning says so, since a flag may also be gone for a new name.
Sources: llama.cpp common/arg.cpp of builds b10068, b10092 and b10434, and the names that older builds used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from launcher.ir.plan import ServerPlan
from launcher.render.devices import Placement

Alternatives = tuple[tuple[str, ...], ...]
"""Words in order of preference; an empty tuple of alternatives: nothing to say."""

ALL_LAYERS = "999"
"""More layers than any model has; older builds do not know the word `all`."""


class Meaning(NamedTuple):
    """One choice: the ServerPlan fields it covers, its config key, every flag that decides it, how it is said.

    `key` is below `servers.NAME`. `owns` are the flags that `extra_args` may not use because the plan depends on
    this choice; with `soft` it does not, and a flag in `extra_args` replaces ours. `through`: what the choice follows
    from where its own key is left out; a field of the server, or a whole key with `{name}` in it.
    """

    fields: tuple[str, ...]
    key: str
    owns: tuple[str, ...]
    spell: Callable[[ServerPlan, Placement], Alternatives]
    soft: bool = False
    through: tuple[str, ...] = ()


NOT_FLAGS = {
    "roles": "routing table",
    "aliases": "routing table; --alias carries the server's name, by which a gate knows it",
    "tier": "manifest",
    "engine": "chooses the binary and the dialect",
    "model": "display",
    "quantization": "display",
    "file_parts": "the server finds parts by the name of the first",
    "arch": "plan",
    "draft_arch": "plan",
    "source": "plan",
    "n_ctx_per_slot": "follows from n_ctx and slots",
    "n_ctx_train": "plan",
    "cpus": "taskset, numactl or CPUAffinity=",
    "numa": "numactl or NUMAPolicy=; --numa would turn off prefetching of the mapping",
    "on": "chooses the host, whose bundle has the server",
    "exclusive": "manifest",
    "default": "manifest",
    "after": "manifest",
    "start_timeout_s": "manifest",
    "stall_timeout_s": "manifest",
    "request_timeout_s": "the front enforces it",
    "stop_grace_s": "manifest",
    "fatal": "manifest",
    "request_defaults": "the front merges them into requests",
    "request_set": "the front writes them into requests",
    "request_strip": "the front takes them out of requests",
    "extra_args": "appended as they are, after a check",
    "env": "environment",
    "memory": "plan",
    "proven_by": "plan",
}
"""ServerPlan fields that no flag spells, and who uses them instead."""


def _say(value: object, *flags: str) -> Alternatives:
    """The same value behind each of several names of a flag."""
    return tuple((flag, str(value)) for flag in flags)


def _unless_default(*words: str) -> Alternatives:
    """`words` where the build has them; silence where it has not, because it then knows no other state."""
    return (words, ())


def _flash_attention(s: ServerPlan, _: Placement) -> Alternatives:
    """`-fa on|off|auto`; before it took a value, the switch meant on."""
    return (("--flash-attn", s.flash_attention), ("--flash-attn",) if s.flash_attention != "off" else ())


def _load_mode(s: ServerPlan, _: Placement) -> Alternatives:
    """`--load-mode` where the build has it, else the switches that it replaced."""
    before: dict[str, Alternatives] = {
        "mmap": (("--mmap", "--no-direct-io"), ("--mmap",), ()),
        "mlock": (("--mlock", "--no-mmap"),),
        "mmap+mlock": (("--mlock", "--mmap"), ("--mlock",)),
        "none": (("--no-mmap", "--no-direct-io"), ("--no-mmap",)),
        "dio": (("--direct-io", "--no-mmap"), ("--direct-io",)),
    }
    return (("--load-mode", s.load_mode), *before[s.load_mode])


def _embedding(s: ServerPlan, _: Placement) -> Alternatives:
    """Embedding or reranking server; nothing for the others."""
    if s.pooling == "rank":
        return (("--reranking",), ("--rerank",))
    return (("--embeddings",), ("--embedding",)) if s.embedding else ()


def _speculation(s: ServerPlan, _: Placement) -> Alternatives:
    """The types of speculation. A draft without it loads but never speculates; before it existed, -md implied it."""
    ngram = f"ngram-{s.ngram.kind}" if s.ngram else None
    kinds = [kind for kind in ("draft-simple" if s.draft_path else None, ngram) if kind]
    modern = ("--spec-type", ",".join(kinds) or "none")
    return (modern, ("--spec-type", ngram)) if ngram else (modern, ())


def _ngram_max(s: ServerPlan, _: Placement) -> Alternatives:
    """The longest n-gram draft, by the kind's own flag."""
    if s.ngram is None or s.ngram.n_max is None:
        return ()
    n = s.ngram.n_max
    if s.ngram.kind == "mod":
        return (("--spec-ngram-mod-n-max", str(n), "--spec-ngram-mod-n-min", str(min(n, 48))),)
    return _say(n, f"--spec-ngram-{s.ngram.kind}-size-m")


def _draft(flags: tuple[str, ...], value: Callable[[ServerPlan, Placement], object]) -> Callable[..., Alternatives]:
    """A choice about the draft model: nothing to say without one, nor where `value` gives None."""

    def spell(s: ServerPlan, p: Placement) -> Alternatives:
        """`value` behind each of `flags`, if there is a draft."""
        said = value(s, p) if s.draft is not None and s.draft_path is not None else None
        return () if said is None else _say(said, *flags)

    return spell


def _draft_field(field: str) -> Callable[[ServerPlan, Placement], object]:
    """The value of a field of the draft's config."""
    return lambda s, _: getattr(s.draft, field)


def _draft_device(s: ServerPlan, p: Placement) -> str:
    """The draft runs where its layers go: on the server's devices, or on none."""
    offloaded = s.draft is not None and s.draft.n_gpu_layers != 0
    return ",".join(p.devices) if offloaded and p.devices else "none"


def _draft_layers(s: ServerPlan, _: Placement) -> object:
    """Layers of the draft on devices, as a number."""
    layers = s.draft.n_gpu_layers if s.draft else 0
    return ALL_LAYERS if layers == "all" else layers


def _projector_offload(s: ServerPlan, p: Placement) -> Alternatives:
    """The image encoder runs on the first device of a server that has one."""
    return _unless_default(f"--{'' if p.devices else 'no-'}mmproj-offload") if s.projector_path else ()


def _reasoning(s: ServerPlan, _: Placement) -> Alternatives:
    """Thinking on, off, or as the template says; older builds only had a budget of 0 to turn it off."""
    if s.embedding or s.pooling == "rank":
        return ()
    modern = ("--reasoning", s.reasoning)
    if s.reasoning == "off":
        return (modern, ("--reasoning-budget", "0"))
    return (modern, ()) if s.reasoning == "auto" else (modern,)


_SPEC_MODEL = ("--spec-draft-model", "--model-draft")
_SPEC_MAX = ("--spec-draft-n-max", "--draft-max")
_SPEC_MIN = ("--spec-draft-n-min", "--draft-min")
_SPEC_P = ("--spec-draft-p-min", "--draft-p-min")
_SPEC_K = ("--spec-draft-type-k", "--cache-type-k-draft")
_SPEC_V = ("--spec-draft-type-v", "--cache-type-v-draft")
_SPEC_NGL = ("--spec-draft-ngl", "--n-gpu-layers-draft")
_SPEC_DEVICE = ("--spec-draft-device", "--device-draft")
_NGRAM_MAX = (
    *(f"--spec-ngram-{kind}-size-m" for kind in ("simple", "map-k", "map-k4v")),
    "--spec-ngram-mod-n-max",
    "--spec-ngram-mod-n-min",
)
_MODEL_SOURCES = (
    "--model",
    "--model-url",
    "--hf-repo",
    "--hf-file",
    "--docker-repo",
    "--models-dir",
    "--models-preset",
)
_LOADING = ("--load-mode", "--mlock", "--mmap", "--no-mmap", "--direct-io", "--no-direct-io")
_PROJECTOR = ("--mmproj", "--mmproj-url", "--mmproj-auto", "--no-mmproj")
_EMBEDDING = ("--embeddings", "--embedding", "--reranking", "--rerank")
_CHECKPOINTS = ("--ctx-checkpoints", "--swa-checkpoints")

TABLE: tuple[Meaning, ...] = (
    Meaning(("model_path",), "model", _MODEL_SOURCES, lambda s, _: _say(s.model_path, "--model")),
    Meaning(("name",), "", ("--alias",), lambda s, _: _say(s.name, "--alias")),
    Meaning(("host",), "host", ("--host",), lambda s, _: _say(s.host, "--host")),
    Meaning(
        ("port",),
        "port",
        ("--port", "--reuse-port", "--api-prefix"),
        lambda s, _: _say(s.port, "--port"),
        through=("ports.{name}",),
    ),
    # context and slots
    Meaning(
        ("n_ctx",),
        "n_ctx",
        ("--ctx-size",),
        lambda s, _: _say(s.n_ctx, "--ctx-size"),
        through=("n_ctx_per_slot",),
    ),
    Meaning(("slots",), "slots", ("--parallel",), lambda s, _: _say(s.slots, "--parallel")),
    Meaning(
        ("kv_unified",),
        "kv_unified",
        ("--kv-unified", "--no-kv-unified"),
        lambda s, _: (("--kv-unified",),) if s.kv_unified else _unless_default("--no-kv-unified"),
        through=("slots",),
    ),
    Meaning(("n_batch",), "n_batch", ("--batch-size",), lambda s, _: _say(s.n_batch, "--batch-size")),
    Meaning(("n_ubatch",), "n_ubatch", ("--ubatch-size",), lambda s, _: _say(s.n_ubatch, "--ubatch-size")),
    Meaning(("flash_attention",), "flash_attention", ("--flash-attn",), _flash_attention),
    Meaning(
        ("cache_type_k",), "cache_type_k", ("--cache-type-k",), lambda s, _: _say(s.cache_type_k, "--cache-type-k")
    ),
    Meaning(
        ("cache_type_v",), "cache_type_v", ("--cache-type-v",), lambda s, _: _say(s.cache_type_v, "--cache-type-v")
    ),
    Meaning(("swa_full",), "swa_full", ("--swa-full",), lambda s, _: (("--swa-full",),) if s.swa_full else ()),
    Meaning(
        ("context_checkpoints",),
        "context_checkpoints",
        _CHECKPOINTS,
        lambda s, _: (*_say(s.context_checkpoints, *_CHECKPOINTS), ()),
    ),
    Meaning(
        ("cache_ram_mib",),
        "cache_ram_mib",
        ("--cache-ram",),
        lambda s, _: _unless_default("--cache-ram", str(s.cache_ram_mib)),
    ),
    Meaning(
        ("slot_save_path",),
        "slot_save_path",
        ("--slot-save-path",),
        lambda s, _: _say(s.slot_save_path, "--slot-save-path") if s.slot_save_path else (),
    ),
    Meaning(("embedding",), "embedding", _EMBEDDING, _embedding, through=("pooling",)),
    Meaning(("pooling",), "pooling", ("--pooling",), lambda s, _: _say(s.pooling, "--pooling") if s.pooling else ()),
    # weights
    Meaning((), "", ("--fit", "--fit-target", "--fit-ctx"), lambda *_: _unless_default("--fit", "off")),
    Meaning(("load_mode",), "load_mode", _LOADING, _load_mode),
    Meaning(
        ("repack",),
        "repack",
        ("--repack", "--no-repack"),
        lambda s, _: _unless_default("--repack") if s.repack else (("--no-repack",),),
    ),
    Meaning(
        ("projector_path",),
        "projector",
        _PROJECTOR,
        lambda s, _: _say(s.projector_path, "--mmproj") if s.projector_path else _unless_default("--no-mmproj"),
    ),
    Meaning((), "projector", ("--mmproj-offload", "--no-mmproj-offload"), _projector_offload),
    Meaning(
        ("expert_override",),
        "experts_used",
        (),
        lambda s, _: _say("{}=int:{}".format(*s.expert_override), "--override-kv") if s.expert_override else (),
    ),
    # placement
    Meaning((), "devices", ("--rpc",), lambda _, p: _say(",".join(p.rpc), "--rpc") if p.rpc else ()),
    Meaning(
        ("devices",),
        "devices",
        ("--device",),
        lambda _, p: _say(",".join(p.devices), "--device") if p.devices else _unless_default("--device", "none"),
    ),
    Meaning(
        ("n_gpu_layers",),
        "n_gpu_layers",
        ("--n-gpu-layers",),
        lambda s, _: _say(s.n_gpu_layers, "--n-gpu-layers"),
        through=("devices",),
    ),
    Meaning(
        ("n_cpu_moe",),
        "n_cpu_moe",
        ("--n-cpu-moe", "--cpu-moe", "--override-tensor"),
        lambda s, _: _say(s.n_cpu_moe, "--n-cpu-moe") if s.n_cpu_moe else (),
    ),
    Meaning(
        ("tensor_split",),
        "tensor_split",
        ("--tensor-split",),
        lambda s, _: _say(",".join(f"{x:g}" for x in s.tensor_split), "--tensor-split") if s.tensor_split else (),
        through=("devices",),
    ),
    Meaning(
        ("kv_offload",),
        "kv_offload",
        ("--kv-offload", "--no-kv-offload"),
        lambda s, _: _unless_default("--kv-offload") if s.kv_offload else (("--no-kv-offload",),),
    ),
    Meaning(
        ("threads",),
        "threads",
        ("--threads",),
        lambda s, _: _say(s.threads, "--threads"),
        through=("cpus",),
    ),
    Meaning(
        ("threads_batch",),
        "threads_batch",
        ("--threads-batch",),
        lambda s, _: _say(s.threads_batch, "--threads-batch"),
        through=("threads", "cpus"),
    ),
    # speculation
    Meaning(
        ("draft_path",),
        "draft.model",
        (*_SPEC_MODEL, "--hf-repo-draft"),
        _draft(_SPEC_MODEL, lambda s, _: s.draft_path),
    ),
    Meaning(("draft", "ngram"), "ngram", ("--spec-type", "--spec-default"), _speculation, through=("draft",)),
    Meaning((), "draft.n_max", _SPEC_MAX, _draft(_SPEC_MAX, _draft_field("n_max"))),
    Meaning((), "draft.n_min", _SPEC_MIN, _draft(_SPEC_MIN, _draft_field("n_min"))),
    Meaning((), "draft.p_min", _SPEC_P, _draft(_SPEC_P, _draft_field("p_min"))),
    Meaning((), "draft.cache_type_k", _SPEC_K, _draft(_SPEC_K, _draft_field("cache_type_k"))),
    Meaning((), "draft.cache_type_v", _SPEC_V, _draft(_SPEC_V, _draft_field("cache_type_v"))),
    Meaning((), "draft.n_gpu_layers", _SPEC_NGL, _draft(_SPEC_NGL, _draft_layers)),
    Meaning((), "draft.n_gpu_layers", _SPEC_DEVICE, _draft(_SPEC_DEVICE, _draft_device)),
    Meaning((), "ngram.n_max", _NGRAM_MAX, _ngram_max),
    # behaviour
    Meaning(("reasoning",), "reasoning", ("--reasoning",), _reasoning),
    Meaning((), "", ("--slots", "--no-slots"), lambda *_: _unless_default("--slots")),
    Meaning((), "", ("--metrics",), lambda *_: _unless_default("--metrics"), soft=True),
    Meaning((), "", ("--no-webui", "--no-ui"), lambda *_: (("--no-ui",), ("--no-webui",), ()), soft=True),
    Meaning((), "", ("--cors-origins",), lambda *_: _unless_default("--cors-origins", "localhost"), soft=True),
    Meaning((), "", ("--offline",), lambda *_: _unless_default("--offline"), soft=True),
    Meaning((), "", ("--no-warmup",), lambda *_: _unless_default("--no-warmup"), soft=True),
    Meaning((), "", ("--no-context-shift",), lambda *_: _unless_default("--no-context-shift"), soft=True),
    Meaning((), "", ("--log-colors",), lambda *_: _unless_default("--log-colors", "off"), soft=True),
    Meaning((), "", ("--log-prefix",), lambda *_: _unless_default("--log-prefix"), soft=True),
    Meaning((), "", ("--log-timestamps",), lambda *_: _unless_default("--log-timestamps"), soft=True),
)
