"""What layers are built of: attention, feed-forward and recurrent blocks, as tensor names and shapes. Pure.

Shapes are in GGML order, ne0 (the row) first. Source: llama.cpp src/models/*.cpp (`load_arch_tensors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from launcher.ir.config import ArchitectureConfig


class Part(NamedTuple):
    """A tensor of a layer (`attn_q.weight`) or of the model (`output.weight`)."""

    name: str
    shape: tuple[int, ...]


Parts = Iterator[Part]


class Layer(NamedTuple):
    """What decides the tensors of a layer; layers with equal values have equal tensors."""

    n_head: int
    n_head_kv: int
    n_ff: int
    recurrent: bool
    experts: bool
    nextn: bool
    indexer: bool = False


# --- attention ------------------------------------------------------------------------------------------------


def norm(name: str, size: int) -> Part:
    """A normalisation weight."""
    return Part(f"{name}.weight", (size,))


def biases(*pairs: tuple[str, int]) -> Parts:
    """1-D biases."""
    for name, size in pairs:
        yield Part(f"{name}.bias", (size,))


def attention(a: ArchitectureConfig, k: Layer, *, gated: bool = False) -> Parts:
    """Q, K, V and output matrices, with biases where the model has them. `gated`: Q is twice as wide."""
    q, kv, v = a.key_length * k.n_head, a.key_length * k.n_head_kv, a.value_length * k.n_head_kv
    yield Part("attn_k.weight", (a.n_embd, kv))
    yield Part("attn_output.weight", (a.value_length * k.n_head, a.n_embd))
    yield Part("attn_q.weight", (a.n_embd, q * 2 if gated else q))
    yield Part("attn_v.weight", (a.n_embd, v))
    if a.attention_bias:
        yield from biases(("attn_k", kv), ("attn_q", q), ("attn_v", v))


def qk_norm(a: ArchitectureConfig) -> Parts:
    """A norm over each head of Q and K."""
    yield norm("attn_k_norm", a.key_length)
    yield norm("attn_q_norm", a.key_length)


def latent_attention(a: ArchitectureConfig, k: Layer) -> Parts:
    """Multi-head latent attention with K and V factored apart (deepseek2)."""
    nope = a.key_length_mla - a.rope_dim
    wide = k.n_head * a.key_length_mla
    yield Part("attn_kv_a_mqa.weight", (a.n_embd, a.kv_lora_rank + a.rope_dim))
    yield norm("attn_kv_a_norm", a.kv_lora_rank)
    yield Part("attn_k_b.weight", (nope, a.kv_lora_rank, k.n_head))
    yield Part("attn_v_b.weight", (a.kv_lora_rank, a.value_length_mla, k.n_head))
    yield Part("attn_output.weight", (k.n_head * a.value_length_mla, a.n_embd))
    if a.q_lora_rank:
        yield Part("attn_q_a.weight", (a.n_embd, a.q_lora_rank))
        yield norm("attn_q_a_norm", a.q_lora_rank)
        yield Part("attn_q_b.weight", (a.q_lora_rank, wide))
    else:
        yield Part("attn_q.weight", (a.n_embd, wide))


def indexer(a: ArchitectureConfig) -> Parts:
    """What chooses the tokens that sparse attention attends to (deepseek32, glm-dsa)."""
    yield Part("indexer.attn_k.weight", (a.n_embd, a.indexer_key_length))
    yield Part("indexer.attn_q_b.weight", (a.q_lora_rank, a.indexer_n_head * a.indexer_key_length))
    yield Part("indexer.k_norm.bias", (a.indexer_key_length,))
    yield norm("indexer.k_norm", a.indexer_key_length)
    yield Part("indexer.proj.weight", (a.n_embd, a.indexer_n_head))


# --- feed-forward ---------------------------------------------------------------------------------------------


def ffn(a: ArchitectureConfig, n_ff: int, suffix: str = "", *, gate: bool = True) -> Parts:
    """Down, gate and up matrices; `suffix` is `_shexp` for shared experts."""
    yield Part(f"ffn_down{suffix}.weight", (n_ff, a.n_embd))
    if gate:
        yield Part(f"ffn_gate{suffix}.weight", (a.n_embd, n_ff))
    yield Part(f"ffn_up{suffix}.weight", (a.n_embd, n_ff))


def experts(a: ArchitectureConfig, *, gate: bool = True) -> Parts:
    """Router and expert matrices."""
    width = a.n_embd_latent or a.n_embd
    yield Part("ffn_down_exps.weight", (a.n_ff_exp, width, a.n_expert))
    if gate:
        yield Part("ffn_gate_exps.weight", (width, a.n_ff_exp, a.n_expert))
    yield Part("ffn_gate_inp.weight", (a.n_embd, a.n_expert))
    yield Part("ffn_up_exps.weight", (width, a.n_ff_exp, a.n_expert))


def feed_forward(a: ArchitectureConfig, k: Layer) -> Parts:
    """Experts where the layer has them, with the shared expert where the model has one; else dense."""
    if not k.experts:
        yield from ffn(a, k.n_ff)
        return
    yield from experts(a)
    if shared_width(a):
        yield from ffn(a, shared_width(a), "_shexp")


def shared_width(a: ArchitectureConfig) -> int:
    """Width of the shared expert: as given, else the expert width times their number; 0 = none."""
    return a.n_ff_shexp or a.n_ff_exp * a.n_expert_shared


# --- recurrent layers -----------------------------------------------------------------------------------------


def mamba2(a: ArchitectureConfig) -> Parts:
    """A Mamba-2 mixer."""
    convolved = a.ssm_d_inner + 2 * a.ssm_n_group * a.ssm_d_state
    yield Part("ssm_a", (1, a.ssm_dt_rank))
    yield Part("ssm_conv1d.bias", (convolved,))
    yield Part("ssm_conv1d.weight", (a.ssm_d_conv, convolved))
    yield Part("ssm_d", (1, a.ssm_dt_rank))
    yield Part("ssm_dt.bias", (a.ssm_dt_rank,))
    yield Part("ssm_in.weight", (a.n_embd, a.ssm_d_inner + convolved + a.ssm_dt_rank))
    yield Part("ssm_norm.weight", (a.ssm_d_inner // max(1, a.ssm_n_group), a.ssm_n_group))
    yield Part("ssm_out.weight", (a.ssm_d_inner, a.n_embd))


def gated_delta(a: ArchitectureConfig) -> Parts:
    """A gated delta net: qwen3next keeps beta and alpha in one matrix, qwen35 in two."""
    keys, values = a.ssm_d_state * a.ssm_n_group, a.ssm_d_state * a.ssm_dt_rank
    yield Part("attn_gate.weight", (a.n_embd, values))
    yield Part("attn_qkv.weight", (a.n_embd, 2 * keys + values))
    yield Part("ssm_a", (a.ssm_dt_rank,))
    if a.arch == "qwen3next":
        yield Part("ssm_ba.weight", (a.n_embd, 2 * a.ssm_dt_rank))
    else:
        yield Part("ssm_alpha.weight", (a.n_embd, a.ssm_dt_rank))
        yield Part("ssm_beta.weight", (a.n_embd, a.ssm_dt_rank))
    yield Part("ssm_conv1d.weight", (a.ssm_d_conv, 2 * keys + values))
    yield Part("ssm_dt.bias", (a.ssm_dt_rank,))
    yield norm("ssm_norm", a.ssm_d_state)
    yield Part("ssm_out.weight", (values, a.n_embd))
