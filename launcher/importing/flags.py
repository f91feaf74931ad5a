"""Map llama-server's flags, old spellings included, to fields of the config. Pure.

Source: llama.cpp common/arg.cpp; spellings that newer builds dropped are from its history.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

Convert = Callable[[str], Any]
"""Converts the text after a flag to the value in the config. Raises ValueError if it cannot be one."""


def _flag(text: str) -> bool:
    """The value of a switch (no text), or of a preset's `true` or `false`."""
    if text.lower() in {"", "1", "true", "on", "yes", "enabled"}:
        return True
    if text.lower() in {"0", "false", "off", "no", "disabled"}:
        return False
    raise ValueError(text)


def _not(text: str) -> bool:
    return not _flag(text)


def _layers(text: str) -> int | str:
    """Layers on the GPU; a negative number, or 99 and more, means all."""
    if text in {"all", "auto"}:
        return text
    return "all" if int(text) < 0 or int(text) >= 99 else int(text)


def _attention(text: str) -> str:
    """`auto`, `on` or `off`; the old switch (no text) means on."""
    if text == "auto":
        return "auto"
    return "on" if _flag(text) else "off"


def _devices(text: str) -> list[str]:
    """`CUDA0,CUDA1` as `[cuda0, cuda1]`; `none` as []."""
    return [] if text == "none" else [name.strip().lower() for name in text.split(",")]


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _floats(text: str) -> list[float]:
    return [_float(part) for part in text.replace("/", ",").split(",")]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _placement(text: str) -> list[str]:
    """`REGEX=CPU,REGEX=CUDA0`, with the plan's names of devices in place of buffer types."""
    rules = (rule.rpartition("=") for rule in text.split(","))
    return [f"{regex}={device.strip().lower()}" for regex, _, device in rules]


def _adapters(text: str) -> list[dict[str, Any]]:
    """Adapters in `a.gguf,b.gguf:0.5`: files, with a scale after a colon."""
    adapters = []
    for part in text.split(","):
        path, colon, scale = part.rpartition(":")
        is_scaled = bool(colon) and scale.replace(".", "", 1).isdigit()
        adapters.append({"path": path, "scale": float(scale)} if is_scaled else {"path": part})
    return adapters


def _loading(text: str) -> str:
    """The load mode; `auto`, llama-server's default, is mmap."""
    return "mmap" if text in {"auto", "mmap"} else text


def _projector_device(text: str) -> str:
    """The projector's device; `none` is the CPU."""
    return "cpu" if text == "none" else text.strip().lower()


def _on_cpu(_: str) -> str:
    return "cpu"


def _all_layers(_: str) -> int:
    return 999


def _direct(_: str) -> str:
    return "dio"


def _positive(text: str) -> int | None:
    """A number above 0, else None: llama-server's own choice, as if nothing was written."""
    return int(text) if int(text) > 0 else None


_NGRAM_MAX = (
    *(f"--spec-ngram-{kind}-size-m" for kind in ("simple", "map-k", "map-k4v")),
    "--spec-ngram-mod-n-max",
)
FIELDS: dict[str, tuple[str, Convert]] = {
    spelling: (field, convert)
    for spellings, field, convert in (
        ("-m --model", "file", str),
        ("-mm --mmproj", "projector", str),
        ("-md --model-draft --spec-draft-model", "draft.file", str),
        ("-c --ctx-size", "n_ctx", _positive),
        ("-np --parallel", "slots", _positive),
        ("-kvu --kv-unified", "kv_unified", _flag),
        ("--no-kv-unified -no-kvu", "kv_unified", _not),
        ("-b --batch-size", "n_batch", int),
        ("-ub --ubatch-size", "n_ubatch", int),
        ("-fa --flash-attn", "flash_attention", _attention),
        ("-ctk --cache-type-k", "cache_type_k", str.lower),
        ("-ctv --cache-type-v", "cache_type_v", str.lower),
        ("--swa-full", "swa_full", _flag),
        ("-ctxcp --ctx-checkpoints --swa-checkpoints", "context_checkpoints", int),
        ("-cram --cache-ram", "cache_ram_mib", int),
        ("--slot-save-path", "slot_save_path", str),
        ("--embedding --embeddings", "embedding", _flag),
        ("--rerank --reranking", "rerank", _flag),
        ("--pooling", "pooling", str),
        ("--mlock", "mlock", _flag),
        ("--no-mmap", "no_mmap", _flag),
        ("--mmap", "no_mmap", _not),
        ("--no-repack -nr", "repack", _not),
        ("--repack", "repack", _flag),
        ("--lora --lora-scaled", "lora", _adapters),
        ("-lzm --lazy-mode", "lazy_tensors", str.lower),
        ("-lm --load-mode", "load_mode", _loading),
        ("-dio --direct-io", "load_mode", _direct),
        ("-mmdev --mmproj-device", "projector_device", _projector_device),
        ("--no-mmproj-offload", "projector_device", _on_cpu),
        ("-dev --device", "devices", _devices),
        ("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", _layers),
        ("-ncmoe --n-cpu-moe", "n_cpu_moe", int),
        ("-cmoe --cpu-moe", "n_cpu_moe", _all_layers),
        ("-ncffn --n-cpu-ffn", "n_cpu_ffn", int),
        ("-ot --override-tensor", "tensor_placement", _placement),
        ("-sm --split-mode", "split_mode", str.lower),
        ("-mg --main-gpu", "main_gpu", int),
        ("--rpc", "rpc", _names),
        ("-ts --tensor-split", "tensor_split", _floats),
        ("-nkvo --no-kv-offload", "kv_offload", _not),
        ("-kvo --kv-offload", "kv_offload", _flag),
        ("-t --threads", "threads", _positive),
        ("-tb --threads-batch", "threads_batch", _positive),
        ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "draft.n_gpu_layers", _layers),
        ("-devd --device-draft --spec-draft-device", "draft.devices", _devices),
        ("--spec-type", "spec_type", _names),
        (" ".join(_NGRAM_MAX), "ngram.n_max", int),
        ("--draft --draft-n --draft-max --spec-draft-n-max", "draft.n_max", int),
        ("--draft-min --draft-n-min --spec-draft-n-min", "draft.n_min", int),
        ("--draft-p-min --spec-draft-p-min", "draft.p_min", _float),
        ("-ctkd --cache-type-k-draft --spec-draft-type-k", "draft.cache_type_k", str.lower),
        ("-ctvd --cache-type-v-draft --spec-draft-type-v", "draft.cache_type_v", str.lower),
        ("--port", "port", int),
        ("-a --alias", "aliases", _names),
        ("-rea --reasoning", "reasoning", str.lower),
        ("-to --timeout", "request_timeout_s", _float),
        ("--temp --temperature", "request_defaults.temperature", _float),
        ("--top-k", "request_defaults.top_k", int),
        ("--top-p", "request_defaults.top_p", _float),
        ("--min-p", "request_defaults.min_p", _float),
        ("--repeat-penalty", "request_defaults.repeat_penalty", _float),
        ("--presence-penalty", "request_defaults.presence_penalty", _float),
        ("--frequency-penalty", "request_defaults.frequency_penalty", _float),
        ("-s --seed", "request_defaults.seed", int),
        ("-n --predict --n-predict", "request_defaults.max_tokens", _positive),
    )
    for spelling in spellings.split()
}
"""Spelling of a flag → field of the server (`a.b`: field b of a), and the converter of its value."""

OWN_FLAGS = frozenset(
    {
        *("--host", "--metrics", "--no-webui", "--webui", "--no-ui", "--ui", "--props", "--slots", "--no-slots"),
        "--log-colors",
    }
)
"""Flags that `launch` sets itself, or whose job it does in another way; nothing is lost without them."""

REPEATED = frozenset({"lora", "rpc", "spec_type", "tensor_placement"})
"""Fields whose flags may be given several times."""

_FITTING = ("--fit", "-fit", "--fit-target", "-fitt", "--fit-ctx", "-fitc")
IGNORED_FLAGS = frozenset(
    {
        *("--jinja", "-cb", "--cont-batching", "--no-warmup", "--warmup", "--log-timestamps", *_FITTING),
        *("--mmproj-auto", "--no-mmproj-auto", "--no-mmproj", "--mmproj-offload", "--no-direct-io", "-ndio"),
    }
)
"""Flags for what newer builds do anyway, or what the plan decides: left out without a finding."""

_WITHOUT_VALUE = frozenset({_flag, _not, _on_cpu, _all_layers, _direct})
SWITCHES = frozenset(spelling for spelling, (_, convert) in FIELDS.items() if convert in _WITHOUT_VALUE) | (
    (OWN_FLAGS | IGNORED_FLAGS) - {"--host", "--log-colors", *_FITTING}
)
"""Spellings that take no value, also of flags that newer builds dropped."""

SECRETS = frozenset({"--api-key", "-hft", "--hf-token"})
"""Flags whose values must not get into a file that is passed on."""

DOWNLOAD_FLAGS = frozenset(
    {
        *("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
        *("-mu", "--model-url", "-mmu", "--mmproj-url", "-dr", "--docker-repo"),
    }
)
"""Flags for models that llama-server would download itself."""

WITHOUT_EQUAL = {
    "--models-dir": "here the front is the router: each model is a server",
    "--models-preset": "`launch import` reads the preset itself",
    "--reuse-port": "each server has its port alone",
    "--api-prefix": "the front's paths are llama-server's own",
    "--kv-unified-per-slot": "write `n_ctx_per_slot`, or `n_ctx` with `kv_unified: true`",
    "--no-host": "the plan decides where weights lie",
    "--spec-default": "write `draft` or `ngram`",
    "--spec-ngram-mod-n-min": "`ngram` has no such field",
}
"""Flag that `launch` decides and has no field for → what to do instead."""
