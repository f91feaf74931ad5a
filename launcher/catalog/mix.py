"""Quantization mixes by name (`Q4_K_M`) and number, and which GGML type each tensor gets under one. Pure.

Source: llama.cpp include/llama.h (`enum llama_ftype`), src/llama-quant.cpp (`tensor_allows_quantization`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`, `llama_ftype_get_default_type`).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from launcher.catalog.ggml_types import BY_NAME


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """A quantization mix: `base` is the type of ordinary 2-D weights."""

    name: str
    base: str
    output: str = "q6_K"
    token_embd: str | None = None
    """Type of the token embedding when the output matrix is another tensor; absent = base."""

    @property
    def quantizes(self) -> bool:
        """Whether the per-tensor rules apply (not for f32, f16, bf16)."""
        return self.base not in {"f32", "f16", "bf16"}


_TINY = {"output": "q5_K", "token_embd": "q2_K"}

MIXES: dict[str, Mix] = {
    name: Mix(name=name, base=base, **special)
    for name, base, special in (
        ("F32", "f32", {}),
        ("F16", "f16", {}),
        ("BF16", "bf16", {}),
        ("Q1_0", "q1_0", {}),
        ("Q2_0", "q2_0", {"token_embd": "q4_K"}),
        ("Q4_0", "q4_0", {}),
        ("Q4_1", "q4_1", {}),
        ("Q5_0", "q5_0", {}),
        ("Q5_1", "q5_1", {}),
        ("Q8_0", "q8_0", {"output": "q8_0"}),
        ("Q2_K", "q2_K", {}),
        ("Q2_K_S", "q2_K", {}),
        ("Q3_K_S", "q3_K", {}),
        ("Q3_K_M", "q3_K", {}),
        ("Q3_K_L", "q3_K", {}),
        ("Q4_K_S", "q4_K", {}),
        ("Q4_K_M", "q4_K", {}),
        ("Q5_K_S", "q5_K", {}),
        ("Q5_K_M", "q5_K", {}),
        ("Q6_K", "q6_K", {}),
        ("TQ1_0", "tq1_0", {"token_embd": "q4_K"}),
        ("TQ2_0", "tq2_0", {"token_embd": "q4_K"}),
        ("IQ1_S", "iq1_s", _TINY),
        ("IQ1_M", "iq1_m", _TINY),
        ("IQ2_XXS", "iq2_xxs", _TINY),
        ("IQ2_XS", "iq2_xs", _TINY),
        ("IQ2_S", "iq2_xs", {"output": "q5_K", "token_embd": "iq3_s"}),
        ("IQ2_M", "iq2_s", {"output": "q5_K", "token_embd": "iq3_s"}),
        ("IQ3_XXS", "iq3_xxs", {"output": "q5_K", "token_embd": "iq3_s"}),
        ("IQ3_XS", "iq3_s", {}),
        ("IQ3_S", "iq3_s", {}),
        ("IQ3_M", "iq3_s", {}),
        ("IQ4_NL", "iq4_nl", {}),
        ("IQ4_XS", "iq4_xs", {}),
        ("MXFP4_MOE", "mxfp4", {"output": "q8_0", "token_embd": "q8_0"}),
        ("NVFP4", "nvfp4", {}),
    )
}
"""Mixes by llama-quantize's name."""

_ALIASES = {"MXFP4": "MXFP4_MOE", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_NUMBERED = {
    0: ("F32", "F16", "Q4_0", "Q4_1"),
    7: ("Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    19: ("IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M"),
    30: ("IQ4_XS", "IQ1_M", "BF16"),
    36: ("TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0", "Q2_0"),
}
FILE_TYPES = {start + i: name for start, names in _NUMBERED.items() for i, name in enumerate(names)}
"""Mixes by `general.file_type` (llama.h `enum llama_ftype`)."""


def find_mix(name: str) -> Mix | None:
    """The mix of that name in any case, with llama-quantize's aliases; None when llama.cpp has none."""
    upper = name.upper()
    return MIXES.get(_ALIASES.get(upper, upper))


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a model that the rules depend on. `n_attention_v` counts tensors named attn_v, attn_qkv or attn_kv_b."""

    arch: str
    n_layer: int
    n_attention_v: int
    n_expert: int
    n_gqa: int
    tied: bool
    is_70b: bool


class Place(msgspec.Struct, frozen=True, gc=False):
    """Position of a tensor: its layer, and its index among attention-V and FFN-down tensors (quantizer's count)."""

    layer: int = 0
    i_attention_v: int = 0
    i_ffn: int = 0


NOT_QUANTIZED = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
)
"""Parts of the names of tensors that keep full precision whatever their shape."""

_CATEGORIES = (
    ("attn_qkv.weight", "attention_qkv"),
    ("attn_kv_b.weight", "attention_kv_b"),
    ("attn_v.weight", "attention_v"),
    ("attn_k.weight", "attention_k"),
    ("attn_q.weight", "attention_q"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
V_LIKE = frozenset({"attention_v", "attention_qkv", "attention_kv_b"})
"""Tensors counted in `n_attention_v`."""
_BY_PLACE = {
    **dict.fromkeys(("Q4_K_M", "Q5_K_M", "Q3_K_M", "Q4_K_S"), V_LIKE | {"ffn_down"}),
    **dict.fromkeys(
        ("Q2_K_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"),
        frozenset({"ffn_down"}),
    ),
    "IQ3_XS": frozenset({"ffn_up", "ffn_gate", "ffn_down"}),
}
"""Mixes in which layers differ, and in which kinds of tensor; ffn_down too where the others go by its count."""


@lru_cache(maxsize=1024)
def category_of(name: str) -> str:
    """The kind of tensor that the rules distinguish."""
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def moves(mix: Mix, name: str, shape: tuple[int, ...]) -> bool:
    """Whether the type of tensors of this name and shape can differ from layer to layer."""
    return mix.quantizes and len(shape) > 1 and is_touched(name) and category_of(name) in _BY_PLACE.get(mix.name, ())


@lru_cache(maxsize=1024)
def is_touched(name: str) -> bool:
    """Whether the quantizer touches matrices of this name: those named `…weight` that are not on its list."""
    if not name.endswith("weight") or name in {"position_embd.weight", "token_types.weight"}:
        return False
    return not any(part in name for part in NOT_QUANTIZED)


def tensor_type(mix: Mix, model: Model, name: str, shape: tuple[int, ...], place: Place) -> str:
    """The GGML type of one tensor (a key of `ggml_types.BY_NAME`)."""
    if len(shape) < 2 or not is_touched(name):
        return "f32"
    if not mix.quantizes:
        return mix.base
    return _fallback(_wanted(mix, model, category_of(name), shape, place), shape[0])


def _wanted(mix: Mix, model: Model, category: str, shape: tuple[int, ...], place: Place) -> str:
    if category in {"output", "token_embd"}:
        return _vocabulary(mix, model, category, shape)
    if mix.name == "MXFP4_MOE":
        return "mxfp4" if len(shape) > 2 and shape[2] > 1 else "q8_0"
    if mix.name.startswith(("IQ1_", "IQ2_")):
        return _very_small(mix, model, category, place)
    if category in V_LIKE:
        return _attention_v(mix, model, place)
    if category in {"attention_k", "attention_q", "attention_output"}:
        return _attention(mix, model, category)
    i = place.layer if model.n_expert > 1 else place.i_ffn  # in models with experts the layer counts, else the tensor
    if category == "ffn_down":
        return _ffn_down(mix, model, i)
    if category in {"ffn_up", "ffn_gate"} and mix.name == "IQ3_XS":  # it saves on the middle layers
        return "iq3_xxs" if model.n_layer // 8 <= i < 7 * model.n_layer // 8 else mix.base
    return mix.base


def _vocabulary(mix: Mix, model: Model, category: str, shape: tuple[int, ...]) -> str:
    """Types of the output matrix and of the token embedding, which is the output matrix where none else is."""
    if category == "token_embd" and not model.tied:
        return mix.token_embd or mix.base
    if model.arch == "falcon" or shape[0] % BY_NAME[mix.base].block:
        return "q8_0"
    return mix.output


_MIXTRAL = 8
"""Models of exactly 8 experts share small attention matrices, which the quantizer spares."""


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _very_small(mix: Mix, model: Model, category: str, place: Place) -> str:
    """Rules of the 1- and 2-bit mixes. They need an importance matrix."""
    better = mix.name in {"IQ2_S", "IQ2_M"}
    if category in V_LIKE:
        if model.n_gqa >= 4 or model.n_expert >= 4:
            return "q4_K"
        return "iq3_s" if better else "q2_K"
    if category == "attention_k" and model.n_expert == _MIXTRAL:
        return "q4_K"
    if category == "ffn_down" and place.i_ffn < model.n_layer // 8:
        return "iq3_s" if better else "q2_K"
    if category == "attention_output":
        if model.n_expert == _MIXTRAL:
            return "q5_K"
        return {"IQ1_S": "iq2_xxs", "IQ1_M": "iq2_xxs", "IQ2_S": "iq3_s", "IQ2_M": "iq3_s"}.get(mix.name, mix.base)
    return mix.base


def _attention_v(mix: Mix, model: Model, place: Place) -> str:
    if model.n_expert == _MIXTRAL:
        return "q8_0"
    grouped, i = model.n_gqa >= 4, place.i_attention_v
    chosen = _V_TYPES.get(mix.name, mix.base)
    match mix.name:
        case "Q2_K" | "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if grouped:
            chosen = "q4_K"
        case "IQ4_NL" | "IQ4_XS" if grouped:
            chosen = "q5_K"
        case "Q3_K_M" if i < 2:
            chosen = "q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(i, model.n_attention_v):
            chosen = "q6_K"
        case "Q4_K_S" if i < 4:
            chosen = "q5_K"
    return "q5_K" if model.is_70b and chosen in {"q3_K", "q4_K"} else chosen


_V_TYPES = {"Q2_K": "q3_K", "IQ3_M": "q4_K", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K"}
"""Types of V-like tensors that do not depend on layer or grouping."""


def _ffn_down(mix: Mix, model: Model, i: int) -> str:
    n = model.n_layer
    falcon, early = model.arch == "falcon", i < n // 8
    chosen = mix.base
    match mix.name:
        case "Q2_K":
            chosen = "q3_K"
        case "Q2_K_S" if early:
            chosen = "q4_K"
        case "Q3_K_M":
            plain = falcon and not _more_bits(i, n)
            chosen = "q5_K" if i < n // 16 else "q3_K" if plain else "q4_K"
        case "Q3_K_L":
            chosen = "q4_K" if falcon else "q5_K"
        case "IQ3_M" if early or (model.n_expert == _MIXTRAL and _more_bits(i, n)):
            chosen = "q4_K"
        case "Q4_K_M" if falcon:
            chosen = "q6_K" if i < n // 16 else "q5_K" if _more_bits(i, n) else "q4_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(i, n):
            chosen = "q6_K"
        case "IQ4_NL" | "IQ4_XS" if early:
            chosen = "q5_K"
        case "Q4_K_S" if early and not falcon:
            chosen = "q5_K"
    return chosen


def _attention(mix: Mix, model: Model, category: str) -> str:
    mixtral = model.n_expert == _MIXTRAL
    if category == "attention_k" and mixtral:
        return "q8_0"
    if category != "attention_output":
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(mix.name, mix.base)
    if model.arch == "falcon":
        return "q4_K" if mix.name == "Q3_K_L" else mix.base
    if mixtral:
        return "q5_K" if mix.name in _RAISED_OF_MIXTRAL else mix.base
    raises = {"Q2_K": "q3_K", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K", "IQ3_M": "q4_K"}
    return raises.get(mix.name, mix.base)


_RAISED_OF_MIXTRAL = frozenset(
    {*("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")}
)
"""Mixes that give attn_output of such models more bits."""

_FALLBACK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}


def _fallback(wanted: str, row: int) -> str:
    """The type that a row length allows: blocks of 256, else of 32, else f16."""
    for candidate in (wanted, _FALLBACK.get(wanted, "f16")):
        if row % BY_NAME[candidate].block == 0:
            return candidate
    return "f16"
