"""The graphs of whole models, by architecture, as llama.cpp's src/models build them. Pure.

Which matrices a layer has decides most of it; tables name what only the architecture tells.
"""

from __future__ import annotations

from launcher.ir.config import ArchitectureConfig
from launcher.plan.memory.graph.attention import Heads, attend, attend_within
from launcher.plan.memory.graph.batch import Build, NotSimulatedError, Weights, need
from launcher.plan.memory.graph.feed_forward import Router, experts, feed_forward
from launcher.plan.memory.graph.recurrent import delta_net, mamba2, short_convolution
from launcher.plan.memory.graph.values import Value
from launcher.plan.memory.layers import at, key_length, slides, value_length

SECTIONED = frozenset({"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})
"""Four positions a token (M-RoPE)."""
GATED_QUERY = frozenset({"qwen3next", "qwen35", "qwen35moe"})
SCALED_QUERY = frozenset({"gemma", "gemma2", "gemma3", "gemma-embedding", "phi3"})
SCALED_EMBEDDING = frozenset({"gemma", "gemma2", "gemma3", "gemma-embedding", "granite", "granitemoe", "granitehybrid"})
SCALED_RESIDUAL = frozenset({"granite", "granitemoe", "granitehybrid"})
"""The result of each half is scaled before it is added."""
POST_NORMS = frozenset({"gemma2", "gemma3", "gemma-embedding", "olmo2"})
"""`post_attention_norm` norms the attention's result; elsewhere it is the feed-forward's norm."""
RESIDUAL_FIRST = frozenset({"lfm2", "lfm2moe"})
"""The residual is the first summand, and may be overwritten."""
NORM_EXPANDED = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""A layer's first norm is evaluated before the states are read."""
ROWS_AT_END = frozenset({"qwen3next", "qwen35", "qwen35moe", "nemotron_h", "nemotron_h_moe"})
"""The wanted rows are picked after the last norm, whose result for every token is an output too."""
ROUTERS: dict[str, Router] = {
    "gpt-oss": "softmax-weight",
    **dict.fromkeys(("deepseek2", "glm4moe", "lfm2moe", "nemotron_h_moe"), "sigmoid"),
}
NOT_NORMED = frozenset({"qwen2moe", "gpt-oss"})
"""Weights of the chosen experts are not normed to one."""
ROWS_BEFORE_NORM = frozenset({"gpt-oss"})
"""The wanted rows are picked after the last layer, whose result for every token is an output too."""
NO_LOGITS = frozenset({"lfm2", "lfm2moe"})
"""Servers of embeddings make no logits; those of other causal models do."""
NO_ROPE = frozenset({"nemotron_h", "nemotron_h_moe"})
SIMULATED = frozenset(
    {
        *("llama", "mistral3", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe"),
        *("granite", "granitemoe", "granitehybrid", "gemma", "gemma2", "gemma3", "gemma-embedding", "phi3", "olmo2"),
        *("gpt-oss", "deepseek2", "glm4moe", "qwen3next", "qwen35", "qwen35moe", "nemotron_h", "nemotron_h_moe"),
        *("lfm2", "lfm2moe", "falcon-h1", "bert"),
    }
)
"""Architectures whose graphs are described here."""

_MATRICES = (
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "attn_norm", "ffn_norm", "attn_output_norm"),
    *("layer_output_norm", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
)
_WITHOUT_BIAS = (
    *("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm", "attn_sinks", "ffn_gate_inp_shexp"),
    *("attn_q_a", "attn_q_b", "attn_q_a_norm", "attn_kv_a_mqa", "attn_kv_a_norm", "attn_k_b", "attn_v_b"),
    *("ssm_in", "ssm_conv1d", "ssm_norm", "ssm_out", "attn_gate", "ssm_ba", "ssm_alpha", "ssm_beta"),
    *("shortconv.conv", "shortconv.in_proj", "shortconv.out_proj", "ffn_latent_down", "ffn_latent_up"),
)
KNOWN = frozenset(
    {
        *(f"{name}.{part}" for name in _MATRICES for part in ("weight", "bias")),
        *(f"{name}.weight" for name in _WITHOUT_BIAS),
        *("ssm_conv1d.bias", "ssm_dt.bias", "ssm_a", "ssm_d", "exp_probs_b.bias", "ffn_norm"),
        *("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
    }
)
"""Weights of a layer whose use is described here."""
MIXERS = frozenset({"attn_output.weight", "ssm_out.weight", "shortconv.out_proj.weight"})
"""One of these is in every layer in which tokens meet."""


def embed(b: Build) -> Value:
    """Token embeddings: looked up, or given, for which room is kept too (build_inp_embd)."""
    g, tokens, a = b.graph, b.batch.tokens, b.arch
    width = a.n_embd * (1 + a.n_deepstack)
    if b.batch.offloaded:
        if a.arch == "bert":
            raise NotSimulatedError("embeddings of bert on a device")
        x = b.shared("embedded on the host", a.n_embd, tokens, kind="f32")
        g.expand(x)
    else:
        ids = b.shared("tokens", tokens)
        g.expand(ids)
        g.expand(b.shared("embeddings", width, tokens, kind="f32"))
        x = g.new((a.n_embd, tokens), ids)
    if a.n_deepstack:
        padded = g.new((width, tokens), x)
        x = b.once("embedded", lambda: g.view(padded, a.n_embd, tokens))
    if a.arch in SCALED_EMBEDDING:
        x = g.over(x)
    if a.arch == "bert":
        positions = g.new((a.n_embd, tokens), b.shared("positions", tokens))
        x = b.layer_norm(g.over(positions, g.over(x)))
    g.expand(x)
    return x


def layer(b: Build, weights: Weights, il: int, x: Value, *, last: bool) -> Value:
    """One layer's result; where `last`, of the wanted rows only. The first get features of images on top."""
    out = _layer(b, weights, il, x, last=last)
    if il >= b.arch.n_deepstack:
        return out
    if last:
        raise NotSimulatedError("features of images in the last layer")
    features = b.graph.view(b.once("embedded", lambda: x), b.arch.n_embd, b.batch.tokens)
    return b.graph.over(out, features)


def _layer(b: Build, weights: Weights, il: int, x: Value, *, last: bool) -> Value:
    """One layer's own result."""
    if b.arch.arch == "bert":
        return _encoder_layer(b, weights, il, x, last=last)
    if b.arch.arch in NO_ROPE:
        return _single_half(b, weights, il, x)
    mixed = _mix(b, weights, il, x)
    if b.arch.arch == "falcon-h1":  # both halves are added up first
        x = _add(b, mixed, x)
        (x,) = b.wanted_rows(x) if last else (x,)
        return _add(b, _feed(b, weights, x), x)
    if last and b.arch.arch not in ROWS_AT_END | ROWS_BEFORE_NORM:
        mixed, x = b.wanted_rows(mixed, x)
    if b.arch.arch in POST_NORMS and "post_attention_norm.weight" in weights:
        mixed = b.norm(mixed)
    x = _add(b, mixed, x)
    fed = _feed(b, weights, x)
    return b.graph.over(x, fed) if b.arch.arch == "phi3" else _add(b, fed, x)


def _mix(b: Build, weights: Weights, il: int, x: Value) -> Value:
    """The half of a layer where tokens meet: attention, or a recurrent mixer."""
    normed = b.norm(x) if "attn_norm.weight" in weights else x
    if b.arch.arch in NORM_EXPANDED:
        b.graph.expand(normed)
    if b.arch.arch == "falcon-h1":
        attended = _attention(b, weights, il, normed)
        return b.graph.over(attended, mamba2(b, weights, b.norm(x)))
    if "attn_kv_a_mqa.weight" in weights:
        return _latent(b, weights, il, normed)
    if "ssm_in.weight" in weights:
        return mamba2(b, weights, normed)
    if "ssm_conv1d.weight" in weights:
        return delta_net(b, weights, normed)
    if "shortconv.conv.weight" in weights:
        return short_convolution(b, weights, normed)
    return _attention(b, weights, il, normed)


def _feed(b: Build, weights: Weights, x: Value) -> Value:
    """The feed-forward half: norm, experts with a shared one or a dense block, norm."""
    a = b.arch
    has_norm = (
        "ffn_norm.weight" in weights
        or "ffn_norm" in weights
        or ("post_attention_norm.weight" in weights and a.arch not in POST_NORMS)
    )
    normed = b.norm(x) if has_norm else x
    if "ffn_gate_inp.weight" not in weights:
        out = feed_forward(b, weights, normed)
    else:
        out = experts(b, weights, normed, ROUTERS.get(a.arch, "softmax"), normed=a.arch not in NOT_NORMED)
        if "ffn_up_shexp.weight" in weights:
            out = b.graph.over(out, _shared_expert(b, weights, normed))
    return b.norm(out) if a.arch in POST_NORMS else out


def _shared_expert(b: Build, weights: Weights, x: Value) -> Value:
    """The expert that every token uses, gated where there is a gate."""
    g = b.graph
    out = feed_forward(b, weights, x, "_shexp")
    if "ffn_gate_inp_shexp.weight" not in weights:
        return out
    gate = g.matmul(1, x)
    sigmoid = g.over(gate)
    return g.over(out, g.over(sigmoid, gate) if b.arch.arch == "qwen2moe" else sigmoid)


def _add(b: Build, value: Value, residual: Value) -> Value:
    """`value` on top of the residual stream."""
    if b.arch.arch in SCALED_RESIDUAL:
        value = b.graph.over(value)
    if b.arch.arch in RESIDUAL_FIRST:
        return b.graph.over(residual, value)
    return b.graph.over(value, residual)


def heads_of(a: ArchitectureConfig, il: int) -> Heads:
    """The heads of layer `il`."""
    sliding = slides(a, il)
    widths = key_length(a, sliding=sliding), value_length(a, sliding=sliding)
    counts = at(a.n_head, il), at(a.n_head_kv, il)
    if min(*widths, *counts) < 1:
        raise NotSimulatedError(f"{counts} heads of width {widths}")
    return Heads(*counts, *widths, sliding=sliding)


def _attention(b: Build, weights: Weights, il: int, x: Value) -> Value:
    """Queries, keys and values of the normed `x`, attention, output matrix."""
    g, heads = b.graph, heads_of(b.arch, il)
    heads.soft_cap = b.arch.arch == "gemma2"
    q, k, v, full = _qkv(b, weights, heads, x)
    if b.arch.arch not in NO_ROPE:
        q, k = (g.over(value, _positions(b)) for value in (q, k))
    if b.arch.arch in SCALED_QUERY:
        q = g.over(q)
    within = not b.arch.causal and b.batch.full is None and b.batch.sliding is None
    out = attend_within(b, heads, q, k, v) if within else attend(b, heads, q, k, v)
    if b.arch.arch in GATED_QUERY:
        gate = g.new((heads.v * heads.n, b.batch.tokens), g.view(full, heads.k, heads.n, b.batch.tokens))
        out = g.over(out, g.over(gate))
    return b.linear(weights, "attn_output", out)


def _qkv(b: Build, weights: Weights, heads: Heads, x: Value) -> tuple[Value, Value, Value, Value]:
    """Queries, keys and values by head, normed where there are norms; and what the queries are a view of."""
    g, tokens = b.graph, b.batch.tokens
    shapes = ((heads.k, heads.n, tokens), (heads.k, heads.kv, tokens), (heads.v, heads.kv, tokens))
    if "attn_qkv.weight" in weights:
        full = b.linear(weights, "attn_qkv", x)
        q, k, v = (g.view(full, *shape) for shape in shapes)
        return q, k, v, full
    full, flat_k, flat_v = (b.linear(weights, name, x) for name in ("attn_q", "attn_k", "attn_v"))
    flat_q = full
    if b.arch.arch == "qwen3next":
        full = flat_q = g.view(full, 2 * heads.k, heads.n, tokens)
    norm = weights.get("attn_q_norm.weight")
    if norm is not None and norm[0] != heads.k:  # over all heads at once (olmo2)
        flat_q, flat_k, norm = b.norm(full), b.norm(flat_k), None
    q, k, v = (g.view(flat, *shape) for flat, shape in zip((flat_q, flat_k, flat_v), shapes, strict=True))
    if norm is not None:
        q, k = b.norm(q), b.norm(k)
    return q, k, v, full


def _positions(b: Build) -> Value:
    """Positions of the tokens."""
    return b.shared("positions", b.batch.tokens * (4 if b.arch.arch in SECTIONED else 1))


def _latent(b: Build, weights: Weights, il: int, x: Value) -> Value:
    """Multi-head latent attention in absorbed form (deepseek2.cpp)."""
    g, a, tokens = b.graph, b.arch, b.batch.tokens
    n, rope, lora = at(a.n_head, il), a.rope_dim, a.kv_lora_rank
    nope = a.key_length_mla - rope
    if "attn_q_a.weight" in weights:
        q = b.linear(weights, "attn_q_b", b.norm(b.linear(weights, "attn_q_a", x)))
    else:
        q = b.linear(weights, "attn_q", x)
    absorbed = g.matmul(need(weights, "attn_k_b.weight")[1], g.view(g.view(q, nope, n, tokens), nope, tokens, n))
    turned = g.over(g.view(q, rope, n, tokens), _positions(b))
    q = g.new((lora + rope, n, tokens), g.view(absorbed, lora, n, tokens), turned)
    packed = b.linear(weights, "attn_kv_a_mqa", x)
    latent = g.view(b.norm(g.view(packed, lora, tokens)), lora, 1, tokens)
    k = g.new((lora + rope, 1, tokens), latent, g.over(g.view(packed, rope, 1, tokens), _positions(b)))
    heads = Heads(n, 1, lora + rope, lora)
    heads.v_b = need(weights, "attn_v_b.weight")[1]
    return b.linear(weights, "attn_output", attend(b, heads, q, k, None))


def _single_half(b: Build, weights: Weights, il: int, x: Value) -> Value:
    """nemotron_h: a layer is a mixer or a feed-forward, never both."""
    normed = b.norm(x)
    if "ssm_in.weight" in weights:
        out = mamba2(b, weights, normed)
    elif "attn_q.weight" in weights:
        out = _attention(b, weights, il, normed)
    elif "ffn_gate_inp.weight" in weights:
        out = experts(b, weights, normed, "sigmoid", normed=True)
        if "ffn_up_shexp.weight" in weights:
            out = b.graph.over(out, feed_forward(b, weights, normed, "_shexp"))
    else:
        out = feed_forward(b, weights, normed)
    return b.graph.over(out, x)


def _encoder_layer(b: Build, weights: Weights, il: int, x: Value, *, last: bool) -> Value:
    """BERT: norms after each half."""
    g, heads = b.graph, heads_of(b.arch, il)
    q, k, v, _ = _qkv(b, weights, heads, x)
    out = b.linear(weights, "attn_output", attend_within(b, heads, q, k, v))
    if last:
        out, x = b.wanted_rows(out, x)
    x = b.layer_norm(g.over(out, x))
    return b.layer_norm(g.over(feed_forward(b, weights, x), x))


def finish(b: Build, x: Value) -> None:
    """The last norm and logits, or pooled embeddings; all that is left enters the graph."""
    g, a = b.graph, b.arch
    if a.arch in ROWS_BEFORE_NORM:
        x.output = True
        (x,) = b.wanted_rows(x)
    if a.arch != "bert":
        x = b.norm(x)
    x.output = True
    if a.arch in ROWS_AT_END:
        (x,) = b.wanted_rows(x)
        x.output = True
    if not a.causal or (b.batch.pooling and a.arch in NO_LOGITS):
        pool(b, x)
        return
    logits = g.matmul(a.n_vocab, x)
    for _ in range(1 if a.arch in SCALED_RESIDUAL else 3 if a.arch == "gemma2" else 0):
        logits = g.over(logits)
    logits.output = True
    g.expand(logits)
    pool(b, x)


def pool(b: Build, x: Value) -> None:
    """One embedding a sequence (build_pooling): a token's, or the mean of all."""
    g, sequences, tokens = b.graph, b.batch.sequences, b.batch.tokens
    g.expand(x)
    if b.batch.pooling in ("", "none"):
        return
    if b.batch.pooling == "mean":
        turned = g.new((tokens, x.shape[0]), g.view(x, tokens, x.shape[0]))
        pooled = g.new((x.shape[0], sequences), turned, b.shared("mean", tokens, sequences, kind="f32"))
    else:
        pooled = g.new((x.shape[0], sequences), x, b.shared("cls", sequences))
    pooled.output = True
    g.expand(pooled)
