"""Recurrent layers beside attention: qwen3next, qwen35moe (with MTP), granitehybrid (also dense), nemotron_h(_moe)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .blueprint import Blueprint, Shape, with_base
from .parts import attention, expert_keys, experts, feed_forward, mamba2, ssm_keys

# d_inner == 2 * n_embd is asserted by granitehybrid's loader.
_MAMBA = Shape(n_layer=4, attention_interval=4, d_conv=4, d_inner=128, d_state=16, dt_rank=4, n_group=1)
_MOE: dict[str, Any] = {"n_expert": 8, "n_expert_used": 2, "n_ff_exp": 32, "n_ff_shexp": 32}

SHAPES = {
    "qwen3next": replace(_MAMBA, d_inner=128, d_state=32, dt_rank=4, n_group=2, **_MOE),
    "qwen35moe": replace(_MAMBA, d_inner=128, d_state=32, dt_rank=4, n_group=2, n_mtp=1, **_MOE),
    "granitehybrid": replace(_MAMBA, **_MOE),
    "granitehybrid-dense": _MAMBA,
    "nemotron_h": _MAMBA,
    "nemotron_h_moe": replace(_MAMBA, **_MOE),
}


def build(arch: str, s: Shape) -> Blueprint:
    """The blueprint of one hybrid model."""
    b = with_base(Blueprint(architecture=arch.removesuffix("-dense")), s)
    b.vocabulary(s)
    ssm_keys(b, s)
    if s.n_expert:
        expert_keys(b, s)
        b.put(expert_shared_feed_forward_length=s.n_ff_shexp)
    if arch.startswith("qwen3"):
        return _qwen(b, s, newer=arch == "qwen35moe")
    if arch.startswith("granite"):
        return _granite(b, s)
    return _nemotron(b, s)


def _qwen(b: Blueprint, s: Shape, *, newer: bool) -> Blueprint:
    """Gated delta net, full attention with a gated query every `attention_interval` layers, experts everywhere."""
    b.put(full_attention_interval=s.attention_interval, rope__dimension_count=s.head_dim // 4)
    if newer:
        b.put(rope__dimension_sections=[s.head_dim // 16, s.head_dim // 32, s.head_dim // 32, 0])
        b.put(block_count=s.n_layer + s.n_mtp, nextn_predict_layers=s.n_mtp)
    for il in range(s.n_layer + s.n_mtp):
        at = f"blk.{il}"
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        if il >= s.n_layer or (il + 1) % s.attention_interval == 0:
            attention(b, at, s, head_norms=True, q_width=2)
        else:
            _delta_net(b, at, s, newer=newer)
        b.norm(f"{at}.post_attention_norm.weight", s.n_embd)
        experts(b, at, s)
        b.plain(f"{at}.ffn_gate_inp_shexp.weight", s.n_embd)
        feed_forward(b, at, s, suffix="_shexp", n_ff=s.n_ff_shexp)
        if il >= s.n_layer:
            b.weight(f"{at}.nextn.eh_proj.weight", 2 * s.n_embd, s.n_embd)
            for norm in ("enorm", "hnorm", "shared_head_norm"):
                b.norm(f"{at}.nextn.{norm}.weight", s.n_embd)
    return b


def _delta_net(b: Blueprint, at: str, s: Shape, *, newer: bool) -> None:
    """One linear-attention layer; d_inner = d_state · dt_rank."""
    key_dim, value_dim = s.d_state * s.n_group, s.d_state * s.dt_rank
    b.weight(f"{at}.attn_qkv.weight", s.n_embd, 2 * key_dim + value_dim)
    b.weight(f"{at}.attn_gate.weight", s.n_embd, value_dim)
    b.plain(f"{at}.ssm_conv1d.weight", s.d_conv, 2 * key_dim + value_dim)
    b.plain(f"{at}.ssm_dt.bias", s.dt_rank)
    b.constant(f"{at}.ssm_a", s.dt_rank, value=-1.0)
    if newer:
        b.weight(f"{at}.ssm_alpha.weight", s.n_embd, s.dt_rank)
        b.weight(f"{at}.ssm_beta.weight", s.n_embd, s.dt_rank)
    else:
        b.weight(f"{at}.ssm_ba.weight", s.n_embd, 2 * s.dt_rank)
    b.norm(f"{at}.ssm_norm.weight", s.d_state)
    b.weight(f"{at}.ssm_out.weight", value_dim, s.n_embd)


def _granite(b: Blueprint, s: Shape) -> Blueprint:
    """Granite 4: Mamba-2 where the layer's number of KV heads is 0; a feed-forward half in every layer."""
    is_attention = [(il + 1) % s.attention_interval == 0 for il in range(s.n_layer)]
    b.put(
        attention__head_count_kv=[s.n_head_kv if yes else 0 for yes in is_attention],
        embedding_scale=12.0,
        residual_scale=0.22,
        attention__scale=0.0078125,
        logit_scale=1.0,
    )
    if s.n_expert:
        b.put(feed_forward_length=s.n_ff_exp)  # the loader reads the experts' width from this key
    for il, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        if is_attention[il]:
            attention(b, at, s)
        else:
            mamba2(b, at, s)
        b.norm(f"{at}.ffn_norm.weight", s.n_embd)
        if s.n_expert:
            experts(b, at, s)
            feed_forward(b, at, s, suffix="_shexp", n_ff=s.n_ff_shexp)
        else:
            feed_forward(b, at, s)
    return b


def _nemotron(b: Blueprint, s: Shape) -> Blueprint:
    """Nemotron-H: each layer is one of Mamba-2, squared-ReLU feed-forward (or experts) and attention, in turn."""
    kinds = [
        "attention" if (il + 1) % s.attention_interval == 0 else ("mamba", "ffn")[il % 2] for il in range(s.n_layer)
    ]
    b.put(
        attention__head_count_kv=[s.n_head_kv if kind == "attention" else 0 for kind in kinds],
        feed_forward_length=[s.n_ff if kind == "ffn" else 0 for kind in kinds],
        attention__layer_norm_epsilon=1e-5,
    )
    if s.n_expert:
        b.put(expert_shared_count=1, expert_weights_scale=1.0, expert_weights_norm=True)
    for il, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        if kinds[il] == "attention":
            attention(b, at, s)
        elif kinds[il] == "mamba":
            mamba2(b, at, s)
        elif s.n_expert:
            experts(b, at, s, gate=False)
            b.plain(f"{at}.exp_probs_b.bias", s.n_expert)
            feed_forward(b, at, s, gate=False, suffix="_shexp", n_ff=s.n_ff_shexp)
        else:
            feed_forward(b, at, s, gate=False)
    return b
