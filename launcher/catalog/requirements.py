"""What an architecture must declare before it can be sized. Pure."""

from __future__ import annotations

from launcher.catalog.blocks import shared_width
from launcher.catalog.layouts import LAYOUTS
from launcher.catalog.traits import ENCODERS, GATED_DELTA, MAX_LAYERS, complete, first_positive
from launcher.errors import Finding
from launcher.ir.config import ArchitectureConfig

MAX_SIZE = 2**40
"""No width, count or vocabulary of a model comes near it."""

_EVERY = ("n_layer", "n_embd", "n_vocab", "n_ctx_train")
_MAMBA = ("ssm_d_conv", "ssm_d_inner", "ssm_d_state", "ssm_n_group", "ssm_dt_rank")
_EXPERTS = ("n_expert", "n_expert_used", "n_ff_exp")
_LATENT = ("kv_lora_rank", "rope_dim", "key_length_mla", "value_length_mla")

_NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GATED_DELTA, _MAMBA),
    **dict.fromkeys(("granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1"), _MAMBA),
    **dict.fromkeys(("lfm2", "lfm2moe"), ("shortconv_l_cache",)),
    "deepseek2": _LATENT,
    **dict.fromkeys(("deepseek32", "glm-dsa"), (*_LATENT, "q_lora_rank")),
    "bert": ("n_token_types",),
}
_MOE = frozenset(
    {
        "deepseek2",
        "deepseek32",
        "glm-dsa",
        "glm4moe",
        "gpt-oss",
        "granitemoe",
        "lfm2moe",
        "nemotron_h_moe",
        "qwen2moe",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3vlmoe",
    }
)
_LATENT_ARCHITECTURES = frozenset({"deepseek2", "deepseek32", "glm-dsa"})
_LISTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("granitehybrid", "lfm2", "lfm2moe"), ("n_head_kv",)),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), ("n_head_kv", "n_ff")),
}
"""Fields that must be per-layer lists, because they say which layers are recurrent."""


def missing_fields(architecture: ArchitectureConfig, key: str) -> tuple[Finding, ...]:
    """Errors for what is absent, absurd or of the wrong length; `key` is the architecture's config key."""
    a = complete(architecture)
    problems = [*_absurd(architecture), *_lists(a)]
    needed = [*_EVERY, *_NEEDS.get(a.arch, ())]
    if a.arch in _MOE or a.n_expert:
        needed += _EXPERTS
    problems += [(name, f"{a.arch} needs {name}") for name in needed if not getattr(a, name)]
    if not first_positive(a.n_head):
        problems.append(("n_head", f"{a.arch} needs n_head"))
    if a.arch not in _MOE and not a.n_expert and not first_positive(a.n_ff):
        problems.append(("n_ff", f"{a.arch} needs n_ff"))
    if a.arch == "nemotron_h_moe" and not shared_width(a):
        problems.append(("n_ff_shexp", f"{a.arch} needs n_ff_shexp"))
    if a.arch in _LATENT_ARCHITECTURES and a.key_length_mla and a.key_length_mla <= a.rope_dim:
        problems.append(("key_length_mla", f"key_length_mla {a.key_length_mla} must exceed rope_dim {a.rope_dim}"))
    return tuple(_finding(f"{key}.{name}".lstrip("."), message, a) for name, message in dict.fromkeys(problems))


def _absurd(a: ArchitectureConfig) -> list[tuple[str, str]]:
    """Numbers that no model has: negative ones, and ones that would fill the memory of the planner itself."""
    problems = []
    for name in a.__struct_fields__:
        value = getattr(a, name)
        if isinstance(value, int) and 0 <= value <= MAX_SIZE:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if name != "bos_token_id" and any(isinstance(n, int) and not 0 <= n <= MAX_SIZE for n in numbers):
            problems.append((name, f"{name} is {value}; it must be between 0 and {MAX_SIZE:,}"))
    if a.n_layer > MAX_LAYERS:
        problems.append(("n_layer", f"n_layer is {a.n_layer:,}; {MAX_LAYERS:,} is the most"))
    return problems


def _lists(a: ArchitectureConfig) -> list[tuple[str, str]]:
    """Per-layer lists of the wrong length, or one number where a list is needed."""
    problems = []
    for name in ("n_head", "n_head_kv", "n_ff", "swa_pattern"):
        value = getattr(a, name)
        if isinstance(value, tuple) and len(value) != a.n_layer:
            problems.append((name, f"{name} has {len(value)} elements for {a.n_layer} layers"))
    own = a.n_layer - a.n_layer_nextn
    if a.indexer_types and len(a.indexer_types) != own:
        message = f"indexer_types has {len(a.indexer_types)} elements for {own} layers"
        problems.append(("indexer_types", message))
    return problems + [
        (name, f"{a.arch} needs {name} as a list with one number a layer; 0 marks layers of another kind")
        for name in _LISTS.get(a.arch, ())
        if isinstance(getattr(a, name), int)
    ]


def _finding(key: str, message: str, a: ArchitectureConfig) -> Finding:
    """One error about an architecture."""
    known = a.arch in LAYOUTS or a.arch in ENCODERS
    return Finding(
        code="catalog/incomplete-architecture",
        severity="error",
        key=key,
        message=message,
        notes=("take it from the model's config.json, or put the GGUF file in place",) if known else (),
    )
