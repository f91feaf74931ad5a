"""Recurrent layers: Mamba-2, gated delta nets, short convolutions. Pure.

Sources: llama.cpp src/models/mamba-base.cpp, delta-net-base.cpp, lfm2.cpp; llama-graph.cpp build_rs.
"""

from __future__ import annotations

from launcher.plan.memory.graph.batch import Build, Weights, need
from launcher.plan.memory.graph.values import Value


def read_state(b: Build, width: int) -> Value:
    """The states of this batch's sequences, (width, sequences), and the rest moved on (build_rs)."""
    g = b.graph
    states = g.new((width, b.batch.sequences), _ids(b))
    g.expand(states)
    _move_on(b, width)
    return states


def _ids(b: Build) -> Value:
    """Which cells the sequences' states are in: one view for all layers."""
    return b.once("rs.main", lambda: b.graph.view(b.shared("rs.ids", b.batch.sequences), b.batch.sequences))


def _move_on(b: Build, width: int) -> None:
    """Copy the states of other sequences: none, when the graph is reserved for all of them."""
    rest = b.once("rs.rest", lambda: b.graph.view(b.shared("rs.ids", b.batch.sequences), 0))
    b.graph.store(b.graph.new((width, 0), rest))


def convolve(b: Build, history: Value, x: Value, d_conv: int) -> Value:
    """`history` before `x` (channels, tokens of a sequence, sequences); the last positions are kept as the next."""
    g, batch = b.graph, b.batch
    channels = x.shape[0]
    past = g.view(history, d_conv - 1, channels, batch.sequences)
    turned = g.view(x, batch.sequence_tokens, channels, batch.sequences)
    joined = g.new((d_conv - 1 + batch.sequence_tokens, channels, batch.sequences), past, turned)
    g.store(g.view(joined, d_conv - 1, channels, batch.sequences))
    return joined


def mamba2(b: Build, weights: Weights, x: Value) -> Value:
    """Mamba-2 on the normed `x` (build_mamba2_layer): (n_embd, tokens)."""
    g, batch, a = b.graph, b.batch, b.arch
    each, sequences = batch.sequence_tokens, batch.sequences
    inner, state, groups, heads = a.ssm_d_inner, a.ssm_d_state, a.ssm_n_group, a.ssm_dt_rank
    convolved = inner + 2 * groups * state
    history = read_state(b, (a.ssm_d_conv - 1) * convolved)
    projected = g.matmul(need(weights, "ssm_in.weight")[1], g.view(x, x.shape[0], each, sequences))
    joined = convolve(b, history, g.view(projected, convolved, each, sequences), a.ssm_d_conv)
    xbc = g.new((convolved, each, sequences), joined)
    if "ssm_conv1d.bias" in weights:
        xbc = g.over(xbc)
    xbc = g.over(xbc)
    xs = g.view(xbc, inner // heads, heads, each, sequences)
    bs, cs = (g.view(xbc, state, groups, each, sequences) for _ in range(2))
    dt = g.over(g.new((heads, each, sequences), g.view(projected, heads, each, sequences)))
    scanned = g.new((inner * batch.tokens + state * inner * sequences,), xs, dt, bs, cs, _ids(b))
    g.expand(scanned)
    _move_on(b, state * inner)
    g.store(g.view(scanned, state * inner, sequences))
    y = g.over(g.view(scanned, inner // heads, heads, each, sequences), g.over(xs))
    z = g.new((inner // heads, heads, each, sequences), g.view(projected, inner // heads, heads, each, sequences))
    y = g.new(y.shape, z, y)
    if "ssm_norm.weight" in weights:
        y = b.norm(g.view(y, inner // groups, groups, each, sequences))
    out = g.matmul(need(weights, "ssm_out.weight")[1], g.view(y, inner, each, sequences))
    return g.view(out, out.shape[0], batch.tokens)


def delta_net(b: Build, weights: Weights, x: Value) -> Value:
    """A gated delta net on the normed `x`, fused (qwen3next, qwen35): (n_embd, tokens)."""
    g, batch, a = b.graph, b.batch, b.arch
    each, sequences, tokens = batch.sequence_tokens, batch.sequences, batch.tokens
    state, key_heads, heads = a.ssm_d_state, a.ssm_n_group, a.ssm_dt_rank
    convolved = 2 * state * key_heads + state * heads
    history = read_state(b, (a.ssm_d_conv - 1) * convolved)
    mixed = g.matmul(convolved, x)
    joined = convolve(b, history, g.view(mixed, convolved, each, sequences), a.ssm_d_conv)
    before = read_state(b, state * state * heads)
    channels = g.over(g.new((convolved, each, sequences), joined))
    q, k = (_key(b, channels, state, key_heads, heads) for _ in range(2))
    v = g.view(channels, state, heads, each, sequences)
    gate, beta = _gates(b, weights, x)
    old = g.view(before, state, state, heads, sequences)
    packed = g.new((state * heads, tokens + state * sequences), q, k, v, gate, beta, old)
    g.expand(packed)
    g.store(g.view(packed, state, state, heads, sequences))
    out = b.norm(g.view(packed, state, heads, each, sequences))
    z = g.over(g.view(g.matmul(state * heads, x), state, heads, each, sequences))
    gated = g.view(g.over(out, z), state * heads, each, sequences)
    done = g.matmul(need(weights, "ssm_out.weight")[1], gated)
    return g.view(done, done.shape[0], tokens)


def _key(b: Build, channels: Value, state: int, key_heads: int, heads: int) -> Value:
    """Queries or keys: normed, and repeated where there are more value heads (qwen3next)."""
    g, batch = b.graph, b.batch
    each, sequences = batch.sequence_tokens, batch.sequences
    part = g.view(channels, state, key_heads, each, sequences)
    normed = g.new(part.shape, part)
    if key_heads == heads or b.arch.arch != "qwen3next":
        return normed
    flat = g.view(normed, state, 1, key_heads, batch.tokens)
    repeated = g.new((state, heads // key_heads, key_heads, batch.tokens), flat)
    return g.view(repeated, state, heads, each, sequences)


def _gates(b: Build, weights: Weights, x: Value) -> tuple[Value, Value]:
    """Decay and beta: from one matrix (qwen3next), or from two."""
    g, batch = b.graph, b.batch
    each, sequences, heads = batch.sequence_tokens, batch.sequences, b.arch.ssm_dt_rank
    if "ssm_ba.weight" in weights:
        groups = b.arch.ssm_n_group
        both = g.view(g.matmul(2 * heads, x), 2 * heads // groups, groups, each, sequences)
        part = (heads // groups, groups, each, sequences)
        alpha = g.new((heads, each, sequences), g.view(both, *part))
        beta = g.view(g.over(g.new(part, g.view(both, *part))), 1, heads, each, sequences)
    else:
        beta = g.over(g.view(g.matmul(heads, x), 1, heads, each, sequences))
        alpha = g.view(g.matmul(heads, x), heads, each, sequences)
    decay = g.over(g.over(g.over(alpha)))
    return g.view(decay, 1, heads, each, sequences), beta


def short_convolution(b: Build, weights: Weights, x: Value) -> Value:
    """lfm2's short convolution between two gates: (n_embd, tokens)."""
    g, batch, d_conv = b.graph, b.batch, b.arch.shortconv_l_cache
    width, each, sequences = x.shape[0], batch.sequence_tokens, batch.sequences
    mixed = g.matmul(need(weights, "shortconv.in_proj.weight")[1], g.view(x, width, each, sequences))
    first, middle, last = (g.view(mixed, width, each, sequences) for _ in range(3))
    gated = g.over(first, last)
    joined = convolve(b, read_state(b, (d_conv - 1) * width), gated, d_conv)
    out = g.over(middle, g.new((width, each, sequences), joined))
    done = g.matmul(need(weights, "shortconv.out_proj.weight")[1], out)
    return g.view(done, done.shape[0], batch.tokens)
