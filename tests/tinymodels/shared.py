"""Headers of gemma3n, whose layers beyond the twentieth read the K/V of earlier ones; for dry runs, not to serve."""

from __future__ import annotations

from pathlib import Path

from . import storage, vocabulary
from .blueprint import Blueprint, Shape, with_base
from .parts import attention, feed_forward

_STREAMS, _RANK, _WIDTH = 4, 64, 256
"""Rows of the residual stream, rank of its side path, width of what each layer gets (src/models/gemma3n.cpp)."""


def write_gemma3n(path: Path, shape: Shape) -> Path:
    """A header with a hole for the data at `path`."""
    blueprint = _blueprint(shape)
    blueprint.metadata.update(vocabulary.none())
    storage.write_hole(path, blueprint, quantization="f16")
    return path


def _blueprint(s: Shape) -> Blueprint:
    """Four rows of residual stream, an embedding for each layer, windows on four layers of five."""
    b = with_base(Blueprint(architecture="gemma3n"), s)
    b.vocabulary(s)
    b.put(attention__sliding_window=s.n_swa)
    for name in ("altup_proj", "altup_unembd_proj"):
        b.plain(f"{name}.weight", s.n_embd, s.n_embd, _STREAMS - 1)
    b.weight("per_layer_token_embd.weight", _WIDTH * s.n_layer, s.n_vocab)
    b.weight("per_layer_model_proj.weight", s.n_embd, _WIDTH * s.n_layer)
    b.norm("per_layer_proj_norm.weight", _WIDTH)
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm", "altup_correct_scale")
    for _, at in b.blocks(s):
        attention(b, at, s, head_norms=True)
        feed_forward(b, at, s)
        for name in (*norms, "altup_router_norm", "laurel_post_norm"):
            b.norm(f"{at}.{name}.weight", s.n_embd)
        b.weight(f"{at}.inp_gate.weight", s.n_embd, _WIDTH)
        b.weight(f"{at}.proj.weight", _WIDTH, s.n_embd)
        b.plain(f"{at}.altup_correct_coef.weight", _STREAMS, _STREAMS)
        b.plain(f"{at}.altup_predict_coef.weight", _STREAMS, _STREAMS**2)
        b.plain(f"{at}.altup_router.weight", s.n_embd, _STREAMS)
        b.weight(f"{at}.laurel_l.weight", s.n_embd, _RANK)
        b.weight(f"{at}.laurel_r.weight", _RANK, s.n_embd)
    return b
