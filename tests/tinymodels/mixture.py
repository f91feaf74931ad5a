"""Mixtures of experts: qwen3moe, qwen3vlmoe, gpt-oss, deepseek2 (with latent attention)."""

from __future__ import annotations

from dataclasses import replace

from .blueprint import Blueprint, Shape, with_base
from .parts import attention, expert_keys, experts, feed_forward

_MOE = Shape(n_expert=8, n_expert_used=2, n_ff_exp=32)

SHAPES = {
    "qwen3moe": _MOE,
    "qwen3vlmoe": replace(_MOE, n_deepstack=1),
    "gpt-oss": replace(_MOE, n_swa=128),
    # Neither n_lora_kv nor head_dim_v_mla is a multiple of 32: the AMX kernels of b10434 abort on those.
    "deepseek2": replace(
        _MOE,
        n_layer=3,
        n_dense_lead=1,
        n_ff_shexp=32,
        n_lora_q=32,
        n_lora_kv=48,
        n_rot=16,
        head_dim_mla=32,
        head_dim_v_mla=16,
    ),
}


def build(arch: str, s: Shape) -> Blueprint:
    """The blueprint of one mixture of experts."""
    b = with_base(Blueprint(architecture=arch), s)
    b.vocabulary(s)
    expert_keys(b, s)
    if arch == "gpt-oss":
        return _gpt_oss(b, s)
    if arch == "deepseek2":
        return _deepseek2(b, s)
    if arch == "qwen3vlmoe":
        b.put(n_deepstack_layers=s.n_deepstack)
        b.put(rope__dimension_sections=[s.head_dim // 8, s.head_dim * 3 // 16, s.head_dim * 3 // 16, 0])
    for _, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        attention(b, at, s, head_norms=True)
        b.norm(f"{at}.ffn_norm.weight", s.n_embd)
        experts(b, at, s)
    return b


def _gpt_oss(b: Blueprint, s: Shape) -> Blueprint:
    """gpt-oss: every matrix has a bias, attention has sinks, every other layer slides."""
    b.put(attention__sliding_window=s.n_swa, rope__dimension_count=s.head_dim)
    for _, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        attention(b, at, s, bias=True)
        b.plain(f"{at}.attn_output.bias", s.n_embd)
        b.plain(f"{at}.attn_sinks.weight", s.n_head)
        b.norm(f"{at}.post_attention_norm.weight", s.n_embd)
        experts(b, at, s)
        b.plain(f"{at}.ffn_gate_inp.bias", s.n_expert)
        b.plain(f"{at}.ffn_gate_exps.bias", s.n_ff_exp, s.n_expert)
        b.plain(f"{at}.ffn_up_exps.bias", s.n_ff_exp, s.n_expert)
        b.plain(f"{at}.ffn_down_exps.bias", s.n_embd, s.n_expert)
    return b


def _deepseek2(b: Blueprint, s: Shape) -> Blueprint:
    """deepseek2: one latent KV head; the cache holds n_lora_kv + n_rot numbers a cell and no V."""
    b.put(
        attention__head_count_kv=1,
        attention__key_length=s.n_lora_kv + s.n_rot,
        attention__value_length=s.n_lora_kv,
        attention__key_length_mla=s.head_dim_mla,
        attention__value_length_mla=s.head_dim_v_mla,
        attention__kv_lora_rank=s.n_lora_kv,
        rope__dimension_count=s.n_rot,
        leading_dense_block_count=s.n_dense_lead,
        expert_shared_count=s.n_ff_shexp // s.n_ff_exp,
        expert_weights_scale=1.0,
        expert_weights_norm=True,
        expert_gating_func=2,
    )
    if s.n_lora_q:
        b.put(attention__q_lora_rank=s.n_lora_q)
    for il, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        _latent_attention(b, at, s)
        b.norm(f"{at}.ffn_norm.weight", s.n_embd)
        if il < s.n_dense_lead:
            feed_forward(b, at, s)
        else:
            experts(b, at, s)
            b.plain(f"{at}.exp_probs_b.bias", s.n_expert)
            feed_forward(b, at, s, suffix="_shexp", n_ff=s.n_ff_shexp)
    return b


def _latent_attention(b: Blueprint, at: str, s: Shape) -> None:
    """Multi-head latent attention in absorbed form: 3-D k_b and v_b."""
    q_rows = s.n_head * s.head_dim_mla
    if s.n_lora_q:
        b.weight(f"{at}.attn_q_a.weight", s.n_embd, s.n_lora_q)
        b.norm(f"{at}.attn_q_a_norm.weight", s.n_lora_q)
        b.weight(f"{at}.attn_q_b.weight", s.n_lora_q, q_rows)
    else:
        b.weight(f"{at}.attn_q.weight", s.n_embd, q_rows)
    b.weight(f"{at}.attn_kv_a_mqa.weight", s.n_embd, s.n_lora_kv + s.n_rot)
    b.norm(f"{at}.attn_kv_a_norm.weight", s.n_lora_kv)
    b.weight(f"{at}.attn_k_b.weight", s.head_dim_mla - s.n_rot, s.n_lora_kv, s.n_head)
    b.weight(f"{at}.attn_v_b.weight", s.n_lora_kv, s.head_dim_v_mla, s.n_head)
    b.weight(f"{at}.attn_output.weight", s.n_head * s.head_dim_v_mla, s.n_embd)
