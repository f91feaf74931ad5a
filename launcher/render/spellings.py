"""Meaning → flags: the one table of how a server's choices are spelled for any llama-server build. Pure.

Each row offers alternatives in order of preference; `launcher.render.command` takes the first whose flags, arity and
values the build accepts. An empty alternative `()` means that a build without the flag is assumed to know no other
state: nothing is passed, and a warning says so, since the flag may also have been renamed. Sources: llama.cpp
common/arg.cpp of builds b10068, b10092 and b10434, and the names that older builds used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from launcher.ir.config import DraftConfig
from launcher.ir.plan import ServerPlan

Alternatives = tuple[tuple[str, ...], ...]
"""Words in order of preference; an empty tuple of alternatives: nothing to say."""

ALL_LAYERS = "999"
"""More layers than any model has; older builds do not know the word `all`."""


class Placement(NamedTuple):
    """Devices by llama.cpp's names, in order, and the `host:port` of each RPC server among them."""

    devices: tuple[str, ...]
    rpc: tuple[str, ...]
    draft: tuple[str, ...] = ()
    """Where the layers of a draft go: its own, else the server's."""
    projector: tuple[str, ...] = ()
    """Device of the projector, if it has its own."""

    def buffer(self, device: str) -> str:
        """llama.cpp's name of a device's buffer type: the device's; of an RPC server the first, with its endpoint."""
        number = device.removeprefix("RPC")
        known = device.startswith("RPC") and number.isdecimal() and int(number) < len(self.rpc)
        return f"RPC0[{self.rpc[int(number)]}]" if known else device


class Meaning(NamedTuple):
    """One choice: its config key, every flag that decides it, and its spelling.

    `key` is below `servers.NAME`. `owns` are the flags that `extra_args` may not use because the plan depends on this
    choice; with `soft` it does not, and a flag in `extra_args` replaces ours. `through`: what the choice follows from
    where its own key is left out; a field of the server, or a whole key with `{name}` in it.
    """

    key: str
    owns: tuple[str, ...]
    spell: Callable[[ServerPlan, Placement], Alternatives]
    soft: bool = False
    through: tuple[str, ...] = ()


NOT_FLAGS = {
    "id": "routing table",
    "roles": "routing table",
    "aliases": "routing table; --alias carries the server's name, by which a gate knows it",
    "faces": "routing table",
    "tier": "manifest",
    "ttl_s": "a tier of its own",
    "engine": "chooses the binary and the dialect",
    "quantization": "chooses the file of the model",
    "file": "chooses the model",
    "description": "for people",
    "n_ctx_per_slot": "n_ctx follows from it",
    "main_gpu": "said with split_mode",
    "fill": "plan",
    "rpc": "devices of their own",
    "tokens_per_second_min": "watched by the runtime",
    "first_token_max_s": "watched by the runtime",
    "cpus": "taskset, numactl or CPUAffinity=",
    "numa": "numactl or NUMAPolicy=; --numa would turn off prefetching of the mapping",
    "exclusive": "manifest",
    "default": "manifest",
    "min_stay_s": "manifest",
    "after": "manifest",
    "start_timeout_s": "manifest",
    "stall_timeout_s": "manifest",
    "request_timeout_s": "the front enforces it",
    "total_timeout_s": "the front enforces it",
    "stop_grace_s": "manifest",
    "fatal": "manifest",
    "request_defaults": "the front merges them into requests",
    "request_set": "the front writes them into requests",
    "request_strip": "the front takes them out of requests",
    "extra_args": "appended as they are, after a check",
    "env": "environment",
    "waive": "findings",
}
"""ServerConfig fields without a flag, and their readers."""


def _spelled(value: object, *flags: str) -> Alternatives:
    return tuple((flag, str(value)) for flag in flags)


def _say_any(value: object, flag: str) -> Alternatives:
    return _spelled(value, flag) if value else ()


def _unless_default(*words: str) -> Alternatives:
    """`words` if the build has them; nothing if it does not, because it then knows no other state."""
    return (words, ())


def _flash_attention(s: ServerPlan, _: Placement) -> Alternatives:
    """`-fa on|off`; before it took a value, the switch meant on."""
    on = s.settings.flash_attention
    return (("--flash-attn", "on" if on else "off"), ("--flash-attn",) if on else ())


def _load_mode(s: ServerPlan, _: Placement) -> Alternatives:
    """`--load-mode` where the build has it, else the switches that it replaced."""
    before: dict[str, Alternatives] = {
        "mmap": (("--mmap", "--no-direct-io"), ("--mmap",), ()),
        "mlock": (("--mlock", "--no-mmap"),),
        "mmap+mlock": (("--mlock", "--mmap"), ("--mlock",)),
        "none": (("--no-mmap", "--no-direct-io"), ("--no-mmap",)),
        "dio": (("--direct-io", "--no-mmap"), ("--direct-io",)),
    }
    return (("--load-mode", s.settings.load_mode), *before[s.settings.load_mode])


def _embedding(s: ServerPlan, _: Placement) -> Alternatives:
    if s.pooling == "rank":
        return (("--reranking",), ("--rerank",))
    return (("--embeddings",), ("--embedding",)) if s.settings.embedding else ()


def _speculation(s: ServerPlan, _: Placement) -> Alternatives:
    """The types of speculation. A draft without it loads but never speculates; before it existed, -md implied it."""
    ngram = f"ngram-{s.settings.ngram.kind}" if s.settings.ngram else None
    draft = (
        f"draft-{s.config.draft.kind}" if s.config.draft and (s.draft_path or s.config.draft.kind == "mtp") else None
    )
    kinds = [kind for kind in (draft, ngram) if kind]
    modern = ("--spec-type", ",".join(kinds) or "none")
    if s.config.draft is not None and s.config.draft.kind != "simple":
        return (modern,)
    return (modern, ("--spec-type", ngram)) if ngram else (modern, ())


def _ngram_max(s: ServerPlan, _: Placement) -> Alternatives:
    if s.settings.ngram is None or s.settings.ngram.n_max is None:
        return ()
    n = s.settings.ngram.n_max
    if s.settings.ngram.kind == "mod":
        return (("--spec-ngram-mod-n-max", str(n), "--spec-ngram-mod-n-min", str(min(n, 48))),)
    return _spelled(n, f"--spec-ngram-{s.settings.ngram.kind}-size-m")


def _of_settings(field: str, *flags: str, through: tuple[str, ...] = ()) -> Meaning:
    """A choice that is said as it was settled, by the first of `flags`."""
    return Meaning(field, flags, lambda s, _: _spelled(getattr(s.settings, field), flags[0]), through=through)


def _always(*words: str, owns: tuple[str, ...] = (), soft: bool = True) -> Meaning:
    """`words` for every server, by builds that have them. `owns`: further flags that decide it."""
    return Meaning("", (words[0], *owns), lambda *_: _unless_default(*words), soft=soft)


def _of_draft(
    field: str,
    *flags: str,
    value: Callable[[DraftConfig, ServerPlan, Placement], object] | None = None,
    owns: tuple[str, ...] = (),
) -> Meaning:
    """A choice about a draft, as written or as `value` says: nothing without a draft, nor where that is None.

    `owns`: further flags that decide it.
    """

    def spell(s: ServerPlan, p: Placement) -> Alternatives:
        draft = s.config.draft
        if draft is None or (s.draft_path is None and draft.kind != "mtp"):
            return ()
        said = value(draft, s, p) if value else getattr(draft, field)
        return () if said is None else _spelled(said, *flags)

    return Meaning(f"draft.{field}", (*flags, *owns), spell)


def _draft_device(draft: DraftConfig, s: ServerPlan, p: Placement) -> str | None:
    """A draft model runs where its layers go: on devices, or on none."""
    if s.draft_path is None:
        return None
    return ",".join(p.draft) if draft.n_gpu_layers != 0 and p.draft else "none"


def _draft_layers(draft: DraftConfig, s: ServerPlan, p: Placement) -> object:
    """Layers of a draft model on devices, as a number; none without devices."""
    if s.draft_path is None:
        return None
    return (ALL_LAYERS if draft.n_gpu_layers == "all" else draft.n_gpu_layers) if p.draft else 0


def _projector_offload(s: ServerPlan, p: Placement) -> Alternatives:
    """The image encoder runs where it is told to, else on the first device of a server that has one."""
    if not s.projector_path:
        return ()
    if s.config.projector_device == "cpu" or (s.config.projector_device is None and not p.devices):
        return _unless_default("--no-mmproj-offload")
    if s.config.projector_device is None:
        return _unless_default("--mmproj-offload")
    alone = ("--mmproj-offload",) if p.projector == p.devices[:1] else ("--mmproj-device", *p.projector)
    return (("--mmproj-device", *p.projector), alone)


def _lora(s: ServerPlan, _: Placement) -> Alternatives:
    """Adapters with their scales; builds before commas took the flag several times, which all still do."""
    return (tuple(w for a in s.lora for w in ("--lora-scaled", f"{a.path}:{a.scale:g}")),) if s.lora else ()


def expert_key(s: ServerPlan) -> str:
    """The metadata key that says how many experts a token uses."""
    return f"{s.model.architecture.arch}.expert_used_count"


def _placement(s: ServerPlan, p: Placement) -> Alternatives:
    """Tensors by regular expression, in llama.cpp's names of buffer types: the CPU's, and devices as they are."""
    if not s.config.tensor_placement:
        return ()
    names = {**dict(zip(s.settings.devices, map(p.buffer, p.devices), strict=False)), "cpu": "CPU"}
    rules = (rule.rpartition("=") for rule in s.config.tensor_placement)
    return (("--override-tensor", ",".join(f"{regex}={names.get(device, device)}" for regex, _, device in rules)),)


def _split(s: ServerPlan, p: Placement) -> Alternatives:
    """How devices share the model. With `none` one device is left, which `--device` sets."""
    if s.config.split_mode == "layer":
        return _unless_default("--split-mode", "layer") if len(p.devices) > 1 else ()
    if s.config.split_mode == "none":
        return (("--split-mode", "none"),)
    if len(p.devices) < 2:
        return ()  # nothing to share, and llama-server may refuse the mode
    main = s.settings.devices.index(s.config.main_gpu) if s.config.main_gpu in s.settings.devices else 0
    return (("--split-mode", s.config.split_mode, "--main-gpu", str(main)),)


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _reasoning(s: ServerPlan, _: Placement) -> Alternatives:
    """Thinking on, off, or as the template says; older builds only had a budget of 0 to turn it off."""
    if s.settings.embedding or s.pooling == "rank":
        return ()
    modern = ("--reasoning", s.config.reasoning)
    if s.config.reasoning == "off":
        return (modern, ("--reasoning-budget", "0"))
    return (modern, ()) if s.config.reasoning == "auto" else (modern,)


_NGRAM_MAX = (
    *(f"--spec-ngram-{kind}-size-m" for kind in ("simple", "map-k", "map-k4v")),
    *("--spec-ngram-mod-n-max", "--spec-ngram-mod-n-min"),
)
_MODEL_SOURCES = (
    *("--model", "--model-url", "--hf-repo", "--hf-file", "--docker-repo", "--models-dir", "--models-preset"),
)
_LOADING = ("--load-mode", "--mlock", "--mmap", "--no-mmap", "--direct-io", "--no-direct-io")
_PROJECTOR = ("--mmproj", "--mmproj-url", "--mmproj-auto", "--no-mmproj")
_EMBEDDING = ("--embeddings", "--embedding", "--reranking", "--rerank")
_CHECKPOINTS = ("--ctx-checkpoints", "--swa-checkpoints")

TABLE: tuple[Meaning, ...] = (
    Meaning("model", _MODEL_SOURCES, lambda s, _: _spelled(s.model.path, "--model")),
    Meaning("", ("--alias",), lambda s, _: _spelled(s.name, "--alias")),
    Meaning("host", ("--host",), lambda s, _: _spelled(s.config.host, "--host")),
    Meaning(
        "port",
        ("--port", "--reuse-port", "--api-prefix"),
        lambda s, _: _spelled(s.port, "--port") if s.port else (),
        through=("ports.{name}",),
    ),
    # context and slots
    _of_settings("n_ctx", "--ctx-size", "--kv-unified-per-slot", through=("n_ctx_per_slot",)),
    _of_settings("slots", "--parallel"),
    Meaning(
        "kv_unified",
        ("--kv-unified", "--no-kv-unified"),
        lambda s, _: (("--kv-unified",),) if s.settings.kv_unified else _unless_default("--no-kv-unified"),
        through=("slots",),
    ),
    _of_settings("n_batch", "--batch-size"),
    _of_settings("n_ubatch", "--ubatch-size"),
    Meaning("flash_attention", ("--flash-attn",), _flash_attention),
    _of_settings("cache_type_k", "--cache-type-k"),
    _of_settings("cache_type_v", "--cache-type-v"),
    Meaning("swa_full", ("--swa-full",), lambda s, _: (("--swa-full",),) if s.settings.swa_full else ()),
    Meaning(
        "context_checkpoints", _CHECKPOINTS, lambda s, _: (*_spelled(s.settings.context_checkpoints, *_CHECKPOINTS), ())
    ),
    Meaning(
        "cache_ram_mib", ("--cache-ram",), lambda s, _: _unless_default("--cache-ram", str(s.settings.cache_ram_mib))
    ),
    Meaning(
        "slot_save_path", ("--slot-save-path",), lambda s, _: _say_any(s.config.slot_save_path, "--slot-save-path")
    ),
    Meaning("embedding", _EMBEDDING, _embedding, through=("pooling",)),
    Meaning("pooling", ("--pooling",), lambda s, _: _say_any(s.pooling, "--pooling")),
    # weights
    _always("--fit", "off", owns=("--fit-target", "--fit-ctx"), soft=False),
    Meaning("load_mode", _LOADING, _load_mode),
    Meaning(
        "repack",
        ("--repack", "--no-repack", "--no-host"),
        lambda s, _: _unless_default("--repack") if s.settings.repack else (("--no-repack",),),
    ),
    Meaning(
        "projector",
        _PROJECTOR,
        lambda s, _: _spelled(s.projector_path, "--mmproj") if s.projector_path else _unless_default("--no-mmproj"),
    ),
    Meaning(
        "projector_device",
        ("--mmproj-offload", "--no-mmproj-offload", "--mmproj-device"),
        _projector_offload,
        through=("projector",),
    ),
    Meaning("lora", ("--lora", "--lora-scaled"), _lora),
    Meaning("lazy_tensors", ("--lazy-mode",), lambda s, _: _say_any(s.config.lazy_tensors, "--lazy-mode")),
    Meaning(
        "experts_used",
        (),
        lambda s, _: (
            _spelled(f"{expert_key(s)}=int:{used}", "--override-kv") if (used := s.config.experts_used) else ()
        ),
    ),
    # placement
    Meaning("devices", ("--rpc",), lambda _, p: _spelled(",".join(p.rpc), "--rpc") if p.rpc else ()),
    Meaning(
        "devices",
        ("--device",),
        lambda _, p: _spelled(",".join(p.devices), "--device") if p.devices else _unless_default("--device", "none"),
    ),
    _of_settings("n_gpu_layers", "--n-gpu-layers", through=("devices",)),
    Meaning("tensor_placement", ("--override-tensor",), _placement),
    Meaning("n_cpu_moe", ("--n-cpu-moe", "--cpu-moe"), lambda s, _: _say_any(s.settings.n_cpu_moe, "--n-cpu-moe")),
    Meaning("n_cpu_ffn", ("--n-cpu-ffn",), lambda s, _: _say_any(s.config.n_cpu_ffn, "--n-cpu-ffn")),
    Meaning("split_mode", ("--split-mode", "--main-gpu"), _split, through=("devices",)),
    Meaning(
        "tensor_split",
        ("--tensor-split",),
        lambda s, _: _say_any(",".join(f"{x:g}" for x in s.settings.tensor_split), "--tensor-split"),
        through=("devices",),
    ),
    Meaning(
        "kv_offload",
        ("--kv-offload", "--no-kv-offload"),
        lambda s, _: _unless_default("--kv-offload") if s.settings.kv_offload else (("--no-kv-offload",),),
    ),
    _of_settings("threads", "--threads", through=("cpus",)),
    _of_settings("threads_batch", "--threads-batch", through=("threads", "cpus")),
    # speculation
    _of_draft(
        "model", "--spec-draft-model", "--model-draft", value=lambda _, s, __: s.draft_path, owns=("--hf-repo-draft",)
    ),
    Meaning("ngram", ("--spec-type", "--spec-default"), _speculation, through=("draft",)),
    _of_draft("n_max", "--spec-draft-n-max", "--draft-max"),
    _of_draft("n_min", "--spec-draft-n-min", "--draft-min"),
    _of_draft("p_min", "--spec-draft-p-min", "--draft-p-min"),
    _of_draft("cache_type_k", "--spec-draft-type-k", "--cache-type-k-draft"),
    _of_draft("cache_type_v", "--spec-draft-type-v", "--cache-type-v-draft"),
    _of_draft("n_gpu_layers", "--spec-draft-ngl", "--n-gpu-layers-draft", value=_draft_layers),
    _of_draft("n_gpu_layers", "--spec-draft-device", "--device-draft", value=_draft_device),
    Meaning("ngram.n_max", _NGRAM_MAX, _ngram_max),
    # behaviour
    Meaning("reasoning", ("--reasoning",), _reasoning),
    _always("--slots", owns=("--no-slots",), soft=False),
    _always("--metrics"),
    Meaning("", ("--no-webui", "--no-ui"), lambda *_: (("--no-ui",), ("--no-webui",), ()), soft=True),
    _always("--cors-origins", "localhost"),
    _always("--offline"),
    _always("--no-warmup"),
    Meaning(
        "context_shift",
        ("--no-context-shift", "--context-shift"),
        lambda s, _: (("--context-shift",),) if s.config.context_shift else _unless_default("--no-context-shift"),
        soft=True,
    ),
    Meaning(
        "n_keep",
        ("--keep",),
        lambda s, _: () if s.config.n_keep is None else _spelled(s.config.n_keep, "--keep"),
        soft=True,
    ),
    Meaning(
        "chat_template_file",
        ("--chat-template-file",),
        lambda s, _: _say_any(s.config.chat_template_file, "--chat-template-file"),
        soft=True,
    ),
    Meaning(
        "chat_template_args",
        ("--chat-template-kwargs",),
        lambda s, _: _spelled(_json(args), "--chat-template-kwargs") if (args := s.config.chat_template_args) else (),
        soft=True,
    ),
    _always("--log-colors", "off"),
    _always("--log-prefix"),
    _always("--log-timestamps"),
)
