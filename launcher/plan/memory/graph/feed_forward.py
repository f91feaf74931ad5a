"""Dense and expert feed-forward as llama-graph.cpp builds them (build_ffn, build_moe_ffn). Pure."""

from __future__ import annotations

from typing import Literal

from launcher.plan.memory.graph.batch import Build, NotSimulatedError, Weights, need
from launcher.plan.memory.graph.values import Value

Router = Literal["softmax", "sigmoid", "softmax-weight"]
"""How router logits become weights; the last after the experts are chosen (gpt-oss)."""
SQUARED = frozenset({"nemotron_h", "nemotron_h_moe"})
"""Activation by a squared ReLU: two operations."""


def feed_forward(b: Build, weights: Weights, x: Value, suffix: str = "") -> Value:
    """Gate and up, their product, down; without a gate one activation, or both halves of a matrix of double width."""
    g = b.graph
    up = b.linear(weights, f"ffn_up{suffix}", x)
    inner = need(weights, f"ffn_down{suffix}.weight")[0]
    if f"ffn_gate{suffix}.weight" in weights:
        middle = g.new(up.shape, b.linear(weights, f"ffn_gate{suffix}", x), up)
    elif up.shape[0] == 2 * inner:
        middle = g.new((inner, *up.shape[1:]), up)
    else:
        middle = g.over(up)
        middle = g.over(middle) if b.arch.arch in SQUARED else middle
    return b.linear(weights, f"ffn_down{suffix}", middle)


def experts(b: Build, weights: Weights, x: Value, router: Router, *, normed: bool) -> Value:
    """The experts that the router chose, weighted and added up; all nodes are in the graph on return."""
    g, tokens, used = b.graph, x.shape[1], b.batch.experts_used
    if not 0 < used <= b.arch.n_expert:
        raise NotSimulatedError(f"{used} of {b.arch.n_expert} experts")
    share, chosen = _route(b, weights, x, router, normed=normed)
    g.expand(share)
    wide = g.view(x, x.shape[0], 1, tokens)
    inner = need(weights, "ffn_down_exps.weight")[0]
    up = _bank(b, weights, "ffn_up_exps", wide, chosen)
    if "ffn_gate_exps.weight" in weights:
        middle = g.new((inner, used, tokens), _bank(b, weights, "ffn_gate_exps", wide, chosen), up)
    else:
        middle = g.over(g.over(up))
    weighted = g.over(_bank(b, weights, "ffn_down_exps", middle, chosen), share)
    g.expand(weighted)
    each = [g.view(weighted, weighted.shape[0], tokens) for _ in range(used)]
    for one in each:
        g.expand(one)
    total = each[0]
    for one in each[1:]:
        total = g.over(total, one)
        g.expand(total)
    return total if used > 1 else g.new(total.shape, total)


def _bank(b: Build, weights: Weights, name: str, x: Value, chosen: Value) -> Value:
    """One matrix of each chosen expert (MUL_MAT_ID), with its bias (ADD_ID)."""
    rows = need(weights, f"{name}.weight")[1]
    product = b.graph.new((rows, *chosen.shape[:2]), x, chosen)
    return b.graph.over(product, chosen) if f"{name}.bias" in weights else product


def _route(b: Build, weights: Weights, x: Value, router: Router, *, normed: bool) -> tuple[Value, Value]:
    """Weights (1, used, tokens) and numbers (used, tokens) of the chosen experts."""
    g, tokens, used = b.graph, x.shape[1], b.batch.experts_used
    logits = b.linear(weights, "ffn_gate_inp", x)
    count = logits.shape[0]
    probabilities = logits if router == "softmax-weight" else g.over(logits)
    ranked = g.over(probabilities) if "exp_probs_b.bias" in weights else probabilities
    chosen = g.view(g.new((count, tokens), ranked, kind="i32"), used, tokens)
    share = g.new((1, used, tokens), g.view(probabilities, 1, count, tokens), chosen)
    if normed:
        flat = g.view(share, used, tokens)
        total = g.new((1, tokens), flat)
        share = g.view(g.over(flat, g.view(total, 1, tokens)), 1, used, tokens)
    elif router == "softmax-weight":
        share = g.view(g.over(g.view(share, used, tokens)), 1, used, tokens)
    return share, chosen
