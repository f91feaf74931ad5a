"""The tensors of each architecture: names and shapes, before any type is chosen. Pure.

Shapes are in GGML order, ne0 (the row) first. Source: llama.cpp src/models/*.cpp (`load_arch_tensors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from launcher.ir.architectures import at_layer, is_recurrent, traits, trunk
from launcher.ir.config import ArchitectureConfig


class Part(NamedTuple):
    """A tensor of a layer (`attn_q.weight`) or of the model (`output.weight`)."""

    name: str
    shape: tuple[int, ...]


Parts = Iterator[Part]


class Layer(NamedTuple):
    """The properties that decide a layer's tensors; layers with equal properties have equal tensors."""

    n_head: int
    n_head_kv: int
    n_ff: int
    recurrent: bool
    experts: bool
    nextn: bool
    indexer: bool


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
    """The indexer, which chooses the tokens that sparse attention attends to (deepseek32, glm-dsa)."""
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


def router_bias(a: ArchitectureConfig) -> Part:
    """What corrects the router's choice of experts."""
    return Part("exp_probs_b.bias", (a.n_expert,))


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


def layer_kind(a: ArchitectureConfig, il: int) -> Layer:
    """The kind of layer `il`."""
    nextn = il >= trunk(a)
    return Layer(
        at_layer(a.n_head, il),
        at_layer(a.n_head_kv, il),
        at_layer(a.n_ff, il),
        recurrent=is_recurrent(a, il),
        experts=a.n_expert > 0 and il >= a.n_layer_dense_lead,
        nextn=nextn,
        indexer=a.indexer_key_length > 0 and (nextn or not a.indexer_types or a.indexer_types[il]),
    )


def model_parts(a: ArchitectureConfig) -> Parts:
    """Tensors outside the layers, in llama-quantize's order (by name)."""
    if traits(a.arch).is_encoder:
        if a.arch == "bert":
            yield Part("position_embd.weight", (a.n_embd, a.n_ctx_train))
        yield Part("token_embd.weight", (a.n_embd, a.n_vocab))
        yield Part("token_embd_norm.bias", (a.n_embd,))
        yield Part("token_embd_norm.weight", (a.n_embd,))
        if a.n_token_types:
            yield Part("token_types.weight", (a.n_embd, a.n_token_types))
        return
    if not a.tied_embeddings:
        yield Part("output.weight", (a.n_embd, a.n_vocab))
    if not traits(a.arch).norm_at_embedding:
        yield Part("output_norm.weight", (a.n_embd,))
    yield Part("token_embd.weight", (a.n_embd, a.n_vocab))
    if traits(a.arch).norm_at_embedding:
        yield Part("token_embd_norm.weight", (a.n_embd,))


def layer_parts(a: ArchitectureConfig, kind: Layer) -> tuple[Part, ...]:
    """Tensors of one layer. For an architecture not in `LAYOUTS`: a generic transformer of these sizes."""
    parts = tuple(LAYOUTS.get(a.arch, _generic)(a, kind))
    return parts + tuple(_nextn(a)) if kind.nextn else parts


# --- layers ---------------------------------------------------------------------------------------------------


def _llama(a: ArchitectureConfig, k: Layer) -> Parts:
    """llama, qwen2, qwen3, their mixtures of experts, granite, gemma: pre-norm attention and feed-forward."""
    yield norm("attn_norm", a.n_embd)
    yield from attention(a, k)
    if a.qk_norm or traits(a.arch).qk_norm:
        yield from qk_norm(a)
    yield norm("ffn_norm", a.n_embd)
    yield from feed_forward(a, k)
    if k.experts and traits(a.arch).gates_shared_expert:
        yield Part("ffn_gate_inp_shexp.weight", (a.n_embd,))
    if traits(a.arch).sandwich_norms:
        yield norm("post_attention_norm", a.n_embd)
        yield norm("post_ffw_norm", a.n_embd)


def _phi3(a: ArchitectureConfig, k: Layer) -> Parts:
    """One matrix for Q, K and V, one for gate and up."""
    qkv = a.key_length * k.n_head + (a.key_length + a.value_length) * k.n_head_kv
    yield norm("attn_norm", a.n_embd)
    yield Part("attn_output.weight", (a.value_length * k.n_head, a.n_embd))
    yield Part("attn_qkv.weight", (a.n_embd, qkv))
    yield Part("ffn_down.weight", (k.n_ff, a.n_embd))
    yield norm("ffn_norm", a.n_embd)
    yield Part("ffn_up.weight", (a.n_embd, 2 * k.n_ff))


def _olmo2(a: ArchitectureConfig, k: Layer) -> Parts:
    """Norms after attention and feed-forward; Q and K are normed over all heads at once."""
    yield from attention(a, k)
    yield norm("attn_k_norm", a.key_length * k.n_head_kv)
    yield norm("attn_q_norm", a.key_length * k.n_head)
    yield from ffn(a, k.n_ff)
    yield norm("post_attention_norm", a.n_embd)
    yield norm("post_ffw_norm", a.n_embd)


def _bert(a: ArchitectureConfig, k: Layer) -> Parts:
    """Biases everywhere, norms after, no gate."""
    width = a.key_length * k.n_head
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield Part(f"{name}.weight", (a.n_embd, width))
        yield Part(f"{name}.bias", (width,))
    yield Part("ffn_down.weight", (k.n_ff, a.n_embd))
    yield Part("ffn_up.weight", (a.n_embd, k.n_ff))
    yield from biases(("ffn_down", a.n_embd), ("ffn_up", k.n_ff))
    for name in ("attn_output_norm", "layer_output_norm"):
        yield norm(name, a.n_embd)
        yield Part(f"{name}.bias", (a.n_embd,))


def _granite_hybrid(a: ArchitectureConfig, k: Layer) -> Parts:
    """Mamba-2 or attention, then dense or expert feed-forward."""
    yield norm("attn_norm", a.n_embd)
    yield from mamba2(a) if k.recurrent else attention(a, k)
    yield norm("ffn_norm", a.n_embd)
    yield from feed_forward(a, k)


def _nemotron_h(a: ArchitectureConfig, k: Layer) -> Parts:
    """One of Mamba-2, attention and feed-forward a layer."""
    yield norm("attn_norm", a.n_embd)
    if k.recurrent:
        yield from mamba2(a)
    elif not k.n_ff:
        yield from attention(a, k)
    elif not k.experts:
        yield from ffn(a, k.n_ff, gate=False)
    else:
        yield router_bias(a)
        yield from experts(a, gate=False)
        if a.n_embd_latent:
            yield Part("ffn_latent_down.weight", (a.n_embd, a.n_embd_latent))
            yield Part("ffn_latent_up.weight", (a.n_embd_latent, a.n_embd))
        yield from ffn(a, shared_width(a), "_shexp", gate=False)


def _falcon_h1(a: ArchitectureConfig, k: Layer) -> Parts:
    """Mamba-2 and attention side by side."""
    yield norm("attn_norm", a.n_embd)
    yield from mamba2(a)
    yield from attention(a, k)
    yield Part("ffn_norm", (a.n_embd,))  # without a suffix: that is the name the loader asks for
    yield from ffn(a, k.n_ff)


def _gated_delta_hybrid(a: ArchitectureConfig, k: Layer) -> Parts:
    """Gated delta net, or gated attention; experts with a gated shared one (dense for qwen35)."""
    yield norm("attn_norm", a.n_embd)
    if k.recurrent:
        yield from gated_delta(a)
    else:
        yield from attention(a, k, gated=True)
        yield from qk_norm(a)
    yield from feed_forward(a, k)
    if k.experts:
        yield Part("ffn_gate_inp_shexp.weight", (a.n_embd,))
    yield norm("post_attention_norm", a.n_embd)


def _gpt_oss(a: ArchitectureConfig, k: Layer) -> Parts:
    """Biases on everything, attention sinks."""
    q, kv = a.key_length * k.n_head, a.key_length * k.n_head_kv
    yield norm("attn_norm", a.n_embd)
    yield from (p for p in attention(a, k) if not p.name.endswith(".bias"))
    yield from biases(("attn_k", kv), ("attn_output", a.n_embd), ("attn_q", q), ("attn_v", kv))
    yield norm("attn_sinks", k.n_head)
    yield from experts(a)
    yield Part("ffn_gate_inp.bias", (a.n_expert,))
    yield Part("ffn_down_exps.bias", (a.n_embd, a.n_expert))
    yield Part("ffn_gate_exps.bias", (a.n_ff_exp, a.n_expert))
    yield Part("ffn_up_exps.bias", (a.n_ff_exp, a.n_expert))
    yield norm("post_attention_norm", a.n_embd)


_BIASED_ROUTER = 256
"""DeepSeek's models from V3 on (256 experts) correct the router with a bias; V2 (64, 160) does not."""


def _latent(a: ArchitectureConfig, k: Layer) -> Parts:
    """Latent attention, with an indexer (then the router always has its bias) or not; a dense lead, then experts."""
    yield norm("attn_norm", a.n_embd)
    yield from latent_attention(a, k)
    if k.indexer:
        yield from indexer(a)
    if k.experts and (a.indexer_key_length or a.n_expert >= _BIASED_ROUTER):
        yield router_bias(a)
    yield norm("ffn_norm", a.n_embd)
    yield from feed_forward(a, k)


def _glm4_moe(a: ArchitectureConfig, k: Layer) -> Parts:
    """Post-attention norm instead of a feed-forward norm; biased router; a dense lead."""
    yield norm("attn_norm", a.n_embd)
    yield from attention(a, k)
    if a.qk_norm:
        yield from qk_norm(a)
    if k.experts:
        yield router_bias(a)
    yield from feed_forward(a, k)
    yield norm("post_attention_norm", a.n_embd)


def _lfm2(a: ArchitectureConfig, k: Layer) -> Parts:
    """Short convolution, or attention; then feed-forward."""
    yield norm("attn_norm", a.n_embd)
    if k.recurrent:
        yield Part("shortconv.conv.weight", (a.shortconv_l_cache, a.n_embd))
        yield Part("shortconv.in_proj.weight", (a.n_embd, 3 * a.n_embd))
        yield Part("shortconv.out_proj.weight", (a.n_embd, a.n_embd))
    else:
        yield from attention(a, k)
        yield from qk_norm(a)
    if k.experts and a.arch == "lfm2moe":
        yield router_bias(a)
    yield norm("ffn_norm", a.n_embd)
    yield from feed_forward(a, k)


def _generic(a: ArchitectureConfig, k: Layer) -> Parts:
    """An upper bound for a transformer of unknown kind: everything that its sizes allow at once."""
    for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
        yield norm(name, a.n_embd)
    if a.kv_lora_rank and a.key_length_mla:
        yield from latent_attention(a, k)
    else:
        yield from attention(a, k)
        yield from qk_norm(a)
    if a.ssm_d_inner:
        yield from mamba2(a)
    yield from feed_forward(a, k)


def _nextn(a: ArchitectureConfig) -> Parts:
    """The further tensors of a next-token-prediction layer."""
    yield Part("nextn.eh_proj.weight", (2 * a.n_embd, a.n_embd))
    for name in ("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"):
        yield norm(name, a.n_embd)
    if traits(a.arch).nextn_vocabulary:
        yield Part("nextn.embed_tokens.weight", (a.n_embd, a.n_vocab))
        yield Part("nextn.shared_head_head.weight", (a.n_embd, a.n_vocab))


LAYOUTS: dict[str, Callable[[ArchitectureConfig, Layer], Parts]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral3", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe"),
            *("granite", "granitemoe", "gemma", "gemma2", "gemma3", "gemma-embedding"),
        ),
        _llama,
    ),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _gated_delta_hybrid),
    "phi3": _phi3,
    "olmo2": _olmo2,
    "bert": _bert,
    "granitehybrid": _granite_hybrid,
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _nemotron_h),
    "falcon-h1": _falcon_h1,
    "gpt-oss": _gpt_oss,
    **dict.fromkeys(("deepseek2", "deepseek32", "glm-dsa"), _latent),
    "glm4moe": _glm4_moe,
    **dict.fromkeys(("lfm2", "lfm2moe"), _lfm2),
}
"""Layer tensors by architecture. `mistral` files say `llama`."""
