"""Flags without a config field: their effect on the plan, and their place in `extra_args`. Pure.

Every flag of every recorded build is in `spellings.TABLE`, or in one of the lists here, or is reported by name as one
of unknown effect (tests/render/test_passed.py walks them all).
"""

from __future__ import annotations

from itertools import pairwise

from launcher.ir.plan import ServerPlan

HARMLESS: dict[str, tuple[str, ...]] = {
    "chooses tokens, after everything is allocated": (
        *("--adaptive-decay", "--adaptive-target", "--dry-allowed-length", "--dry-base", "--dry-multiplier"),
        *("--dry-penalty-last-n", "--dry-sequence-breaker", "--dynatemp-exp", "--dynatemp-range"),
        *("--frequency-penalty", "--grammar", "--grammar-file", "--ignore-eos", "--json-schema", "--json-schema-file"),
        *("--logit-bias", "--min-p", "--mirostat", "--mirostat-ent", "--mirostat-lr", "--presence-penalty"),
        *("--repeat-last-n", "--repeat-penalty", "--reverse-prompt", "--sampler-seq", "--samplers", "--seed"),
        *("--temp", "--top-k", "--top-nsigma", "--top-p", "--typical", "--xtc-probability", "--xtc-threshold"),
        *("--predict", "--special", "--tts-use-guide-tokens", "--embd-normalize"),
    ),
    "prompts and answers as text": (
        *("--chat-template", "--escape", "--jinja"),
        *("--prefill-assistant", "--reasoning-budget", "--reasoning-budget-message", "--reasoning-effort"),
        *("--reasoning-format", "--reasoning-preserve", "--skip-chat-parsing", "--spm-infill", "--tags"),
    ),
    "positions, not sizes": (
        *("--rope-freq-base", "--rope-freq-scale", "--rope-scale", "--rope-scaling", "--yarn-attn-factor"),
        *("--yarn-beta-fast", "--yarn-beta-slow", "--yarn-ext-factor", "--yarn-orig-ctx"),
    ),
    "which slot or cached prompt is used, within limits that are planned": (
        *("--cache-idle-slots", "--cache-prompt", "--cache-reuse", "--cont-batching"),
        *("--defrag-thold", "--slot-prompt-similarity"),
    ),
    "where and how eagerly threads run; they are counted by `threads`": (
        *("--cpu-mask", "--cpu-mask-batch", "--cpu-range", "--cpu-range-batch", "--cpu-strict", "--cpu-strict-batch"),
        *("--numa", "--poll", "--poll-batch", "--prio", "--prio-batch", "--threads-http"),
        *("--spec-draft-cpu-mask", "--spec-draft-cpu-mask-batch", "--spec-draft-cpu-range", "--spec-draft-cpu-strict"),
        *("--spec-draft-cpu-strict-batch", "--spec-draft-poll", "--spec-draft-poll-batch", "--spec-draft-prio"),
        *("--spec-draft-prio-batch", "--spec-draft-threads", "--spec-draft-threads-batch"),
    ),
    "how drafts are made, not how long they are": (
        *("--lookup-cache-dynamic", "--lookup-cache-static", "--spec-draft-backend-sampling", "--spec-draft-p-split"),
        *("--spec-draft-sampling", "--spec-ngram-map-k-min-hits", "--spec-ngram-map-k-size-n"),
        *("--spec-ngram-map-k4v-min-hits", "--spec-ngram-map-k4v-size-n", "--spec-ngram-mod-n-match"),
        *("--spec-ngram-simple-min-hits", "--spec-ngram-simple-size-n", "--spec-synth-len", "--spec-synth-rates"),
    ),
    "the HTTP interface": (
        *("--agent", "--api-key-file", "--cors-credentials", "--cors-headers", "--cors-methods", "--props"),
        *("--mcp-servers-config", "--mcp-servers-json", "--media-path", "--path", "--sse-ping-interval", "--timeout"),
        *("--tools", "--tools-runtime", "--ui-config", "--ui-config-file", "--ui-mcp-proxy"),
    ),
    "log and measurements": (
        *("--check-tensors", "--log-file", "--log-prompts-dir", "--perf", "--verbose", "--verbosity"),
    ),
    "a few megabytes at most": ("--control-vector", "--control-vector-layer-range", "--control-vector-scaled"),
    "takes less than what is planned": ("--lora-init-without-apply", "--op-offload"),
    "only of a server without a model of its own": ("--models-autoload", "--models-max"),
    "which frames of a video are read": ("--video-ffmpeg-dir", "--video-fps", "--video-timestamp-interval"),
    "a secret, which is an error of its own": ("--api-key", "--hf-token"),
    "metadata, which has checks of its own": ("--override-kv",),
}
"""Why a flag changes nothing in the plan → such flags, by a name that each of their builds knows."""

_PRESETS = (
    *("--embd-gemma-default", "--fim-qwen-1.5b-default", "--fim-qwen-14b-spec", "--fim-qwen-30b-default"),
    *("--fim-qwen-3b-default", "--fim-qwen-7b-default", "--fim-qwen-7b-spec", "--gpt-oss-120b-default"),
    *("--gpt-oss-20b-default", "--vision-gemma-12b-default", "--vision-gemma-4b-default"),
)
REFUSED: dict[str, tuple[str, ...]] = {
    "it sets model, port, context and slots of its own": _PRESETS,
    "the server prints something and exits": (
        *("--cache-list", "--completion-bash", "--help", "--list-devices", "--version"),
    ),
    "the front and the readiness checks speak plain HTTP to servers": ("--ssl-cert-file", "--ssl-key-file"),
    "the start is watched by the lines of the log": ("--log-disable", "--log-jsonl"),
    "a server that is asleep looks up: let its tier stop it (`idle_timeout_s`)": ("--sleep-idle-seconds",),
    "it loads a further model, which nobody planned": ("--hf-file-v", "--hf-repo-v", "--model-vocoder"),
}
"""Why a server of a fleet cannot have a flag → such flags."""

UNPRICED: dict[str, tuple[str, ...]] = {
    "checkpoints come at other distances than are counted": ("--checkpoint-min-step",),
    "samplers on the device take compute that is not counted": ("--backend-sampling",),
    "images of other sizes take other compute: state models.NAME.projector.compute_bytes": (
        *("--image-max-tokens", "--image-min-tokens", "--mtmd-batch-max-tokens"),
    ),
    "parts of the draft move to the host": (
        *("--spec-draft-cpu-moe", "--spec-draft-n-cpu-moe", "--spec-draft-override-tensor"),
    ),
}
"""The error in the plan → flags that cause it."""

READ, WRITTEN = "read", "written"
FILES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("--chat-template-file", "--grammar-file", "--json-schema-file", "-jf", "--lora", "--lora-scaled"),
            *("--control-vector", "--control-vector-scaled", "--lookup-cache-static", "-lcs", "--mcp-servers-config"),
            *("--media-path", "--path", "--ui-config-file", "--webui-config-file", "--video-ffmpeg-dir"),
        ),
        READ,
    ),
    **dict.fromkeys(("--lookup-cache-dynamic", "-lcd", "--log-file", "--log-prompts-dir"), WRITTEN),
}
"""Flags whose value is a path, or several with commas, and what the server does there. `--api-key-file` is a
credential (`server_keys`)."""
SCALED = frozenset({"--lora-scaled", "--control-vector-scaled"})
"""Flags whose paths are each followed by `:SCALE`."""


def by_flag(lists: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Flag → reason."""
    return {flag: reason for reason, flags in lists.items() for flag in flags}


def files_of(server: ServerPlan) -> tuple[str, ...]:
    """Every file that must be there before a start, each once.

    Beside models these are adapters, a template, and what extra arguments name.
    """
    models = (part.path for file in (server.model, server.draft) if file is not None for part in file.parts)
    projector = server.projector.path if server.projector is not None else None
    own = (*models, projector, *(adapter.path for adapter in server.lora), server.config.chat_template_file)
    return tuple(dict.fromkeys((*(path for path in own if path), *named_files(server.config.extra_args))))


def named_files(words: tuple[str, ...], use: str = READ) -> tuple[str, ...]:
    """The paths that `words` name for `use`, in order, each once."""
    found: list[str] = []
    for flag, value in pairwise(words):
        if FILES.get(flag) == use:
            paths = value.split(",") if flag not in ("--path", "--media-path") else [value]
            found += (path.rpartition(":")[0] or path if flag in SCALED else path for path in paths)
    return tuple(dict.fromkeys(path for path in found if path))


FLAG = "--api-key-file"
CREDENTIAL = "%d/api-key"
"""Path of systemd's copy of the file, as a unit sees it."""


def own_key_file(extra_args: tuple[str, ...]) -> str | None:
    """The file that `--api-key-file` among the extra arguments names: without its key the front would be refused."""
    for flag, value in pairwise((*extra_args, "")):
        if flag == FLAG:
            return value
        if flag.startswith(f"{FLAG}="):
            return flag.partition("=")[2]
    return None


def with_credential(words: tuple[str, ...], quoted: tuple[str, ...]) -> tuple[str, ...]:
    """`quoted`, which are `words` for a unit, with the credential for the key file; its `%` is systemd's to replace."""
    result = list(quoted)
    for at, word in enumerate(words):
        if at and words[at - 1] == FLAG:
            result[at] = CREDENTIAL
        elif word.startswith(f"{FLAG}="):
            result[at] = f"{FLAG}={CREDENTIAL}"
    return tuple(result)
