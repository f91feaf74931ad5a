"""Quantization mixes by name (`Q4_K_M`) and by the number that a file carries. Pure.

Source: llama.cpp include/llama.h (`enum llama_ftype`), src/llama-quant.cpp (`llama_ftype_get_default_type`).
"""

from __future__ import annotations

import msgspec


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
    """The mix of that name in any case, with llama-quantize's aliases; None when llama.cpp has none such."""
    upper = name.upper()
    return MIXES.get(_ALIASES.get(upper, upper))
