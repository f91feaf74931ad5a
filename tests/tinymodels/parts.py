"""Tensor groups that several families share: attention, dense and expert feed-forward, Mamba-2."""

from __future__ import annotations

from .blueprint import Blueprint, Shape


def attention(
    b: Blueprint, at: str, s: Shape, *, bias: bool = False, head_norms: bool = False, q_width: int = 1
) -> None:
    """Query, key, value and output matrices of one layer. `q_width` 2 = gated query (qwen3next)."""
    rows = {"q": s.n_head * s.head_dim * q_width, "k": s.n_head_kv * s.head_dim, "v": s.n_head_kv * s.head_dim}
    for part, width in rows.items():
        b.weight(f"{at}.attn_{part}.weight", s.n_embd, width)
        if bias:
            b.plain(f"{at}.attn_{part}.bias", width)
    b.weight(f"{at}.attn_output.weight", s.n_head * s.head_dim, s.n_embd)
    if head_norms:
        b.norm(f"{at}.attn_q_norm.weight", s.head_dim)
        b.norm(f"{at}.attn_k_norm.weight", s.head_dim)


def feed_forward(b: Blueprint, at: str, s: Shape, *, gate: bool = True, suffix: str = "", n_ff: int = 0) -> None:
    """Up, down and (unless squared ReLU) gate matrices of a dense layer; `suffix` `_shexp` for a shared expert."""
    width = n_ff or s.n_ff
    if gate:
        b.weight(f"{at}.ffn_gate{suffix}.weight", s.n_embd, width)
    b.weight(f"{at}.ffn_up{suffix}.weight", s.n_embd, width)
    b.weight(f"{at}.ffn_down{suffix}.weight", width, s.n_embd)


def experts(b: Blueprint, at: str, s: Shape, *, gate: bool = True) -> None:
    """Router and three-dimensional expert matrices of one layer."""
    b.plain(f"{at}.ffn_gate_inp.weight", s.n_embd, s.n_expert, scale=0.5)
    if gate:
        b.weight(f"{at}.ffn_gate_exps.weight", s.n_embd, s.n_ff_exp, s.n_expert)
    b.weight(f"{at}.ffn_up_exps.weight", s.n_embd, s.n_ff_exp, s.n_expert)
    b.weight(f"{at}.ffn_down_exps.weight", s.n_ff_exp, s.n_embd, s.n_expert)


def expert_keys(b: Blueprint, s: Shape) -> None:
    """Metadata of a mixture of experts."""
    b.put(expert_count=s.n_expert, expert_used_count=s.n_expert_used, expert_feed_forward_length=s.n_ff_exp)


def ssm_keys(b: Blueprint, s: Shape) -> None:
    """Metadata of recurrent layers."""
    b.put(
        ssm__conv_kernel=s.d_conv,
        ssm__inner_size=s.d_inner,
        ssm__state_size=s.d_state,
        ssm__time_step_rank=s.dt_rank,
        ssm__group_count=s.n_group,
    )


def mamba2(b: Blueprint, at: str, s: Shape) -> None:
    """The tensors of one Mamba-2 mixer; dt_rank is its number of heads."""
    conv_dim = s.d_inner + 2 * s.n_group * s.d_state
    b.weight(f"{at}.ssm_in.weight", s.n_embd, s.d_inner + conv_dim + s.dt_rank)
    b.plain(f"{at}.ssm_conv1d.weight", s.d_conv, conv_dim)
    b.plain(f"{at}.ssm_conv1d.bias", conv_dim)
    b.plain(f"{at}.ssm_dt.bias", s.dt_rank)
    b.constant(f"{at}.ssm_a", 1, s.dt_rank, value=-1.0)
    b.constant(f"{at}.ssm_d", 1, s.dt_rank, value=1.0)
    b.constant(f"{at}.ssm_norm.weight", s.d_inner // s.n_group, s.n_group, value=0.1)
    b.weight(f"{at}.ssm_out.weight", s.d_inner, s.n_embd)
