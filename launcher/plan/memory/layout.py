"""How a model is laid out: kinds and widths of its layers, the device of each, and its context over slots. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from math import ceil

import msgspec

from launcher.ir.architectures import at_layer, slides, traits, trunk
from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import RAM, Settings

SLOTS_MAX = 256
"""LLAMA_MAX_SEQ: more slots are refused (llama-context.cpp)."""
AUTO_SLOTS = 4
"""`-np` absent: this many slots on one unified cache (server.cpp)."""
CELL_PAD = 256


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens: whole context, one sequence's share, what a slot may use, and the two batch sizes."""

    n_ctx: int
    n_ctx_seq: int
    n_ctx_per_slot: int
    n_batch: int
    n_ubatch: int


def pad(n: int, to: int = CELL_PAD) -> int:
    """The next multiple of `to` at or above `n` (GGML_PAD)."""
    return -(-n // to) * to


def resolve_context(
    *, n: int, slots: int, unified: bool, n_batch: int, n_ubatch: int, causal: bool, embedding: bool, n_ctx_train: int
) -> Context:
    """The context for `n` requested tokens (0 = the training context) over `slots`.

    Batches are clamped to `n` before it is padded, and only for causal models; `--embedding` first clamps the batch
    to the micro-batch. Source: llama-context.cpp llama_context::llama_context, server.cpp, server-context.cpp.
    """
    n = n or n_ctx_train
    batch = min(n_batch, n_ubatch) if embedding else n_batch
    batch = min(n, batch) if causal else batch
    n_ctx = pad(n)
    n_seq = n_ctx if unified else pad(n_ctx // slots)
    return Context(
        n_ctx=n_ctx if unified else n_seq * slots,
        n_ctx_seq=n_seq,
        n_ctx_per_slot=min(n_seq, n_ctx_train) if n_ctx_train else n_seq,
        n_batch=batch,
        n_ubatch=min(batch, n_ubatch),
    )


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """Indices of layers by what they keep: full attention, sliding attention, recurrent state.

    A layer may keep nothing (a feed-forward layer of nemotron_h), or both (falcon-h1). `n_layer` counts those for
    further tokens too, as `--n-gpu-layers` does.
    """

    n_layer: int
    full: tuple[int, ...]
    sliding: tuple[int, ...]
    recurrent: tuple[int, ...]


def widest(value: int | tuple[int, ...]) -> int:
    """The largest of a per-layer hyper-parameter."""
    return value if isinstance(value, int) else max(value, default=0)


def is_mla(arch: ArchitectureConfig) -> bool:
    """Whether K and V are compressed into one latent row (deepseek2 with key_length_mla)."""
    return arch.key_length_mla > 0


@lru_cache(maxsize=1 << 16)
def split_name(tensor: str) -> tuple[int, str]:
    """Layer index and the rest of a tensor named `blk.N.…`; -1 and the whole name of others."""
    block, _, rest = tensor.partition(".")
    index, _, stem = rest.partition(".")
    return (int(index), stem) if block == "blk" and index.isdecimal() else (-1, tensor)


@lru_cache(maxsize=1024)
def layers(arch: ArchitectureConfig, *, nextn_kv: bool = False) -> Layers:
    """The kinds of `arch`'s layers; `nextn_kv`: those for further tokens keep K/V in the model's own context.

    Source: llama-model.cpp create_memory and load_hparams (set_swa_pattern).
    """
    recurrent = frozenset(il for il in range(trunk(arch)) if _recurs(arch, il))
    last = arch.n_layer if nextn_kv else trunk(arch)
    owners = arch.n_layer_kv or traits(arch.arch).shared_kv_from or arch.n_layer
    attending = [il for il in range(min(last, owners)) if _attends(arch, il, recurs=il in recurrent)]
    sliding = frozenset(il for il in attending if slides(arch, il))
    return Layers(
        n_layer=arch.n_layer,
        full=tuple(il for il in attending if il not in sliding),
        sliding=tuple(il for il in attending if il in sliding),
        recurrent=tuple(sorted(recurrent)),
    )


def nextn_layers(arch: ArchitectureConfig) -> Layers:
    """The layers of the context that drafts further tokens (`draft-mtp`): each keeps K and V of the whole context."""
    return Layers(n_layer=arch.n_layer, full=tuple(range(trunk(arch), arch.n_layer)), sliding=(), recurrent=())


def _recurs(arch: ArchitectureConfig, layer: int) -> bool:
    if arch.shortconv_l_cache:
        return at_layer(arch.n_head_kv, layer) == 0
    if not arch.ssm_d_inner:
        return False
    if arch.full_attention_interval:
        return (layer + 1) % arch.full_attention_interval != 0
    if traits(arch.arch).recurrent == "without heads or width":
        return at_layer(arch.n_head_kv, layer) == 0 and at_layer(arch.n_ff, layer) == 0
    return isinstance(arch.n_head_kv, int) or at_layer(arch.n_head_kv, layer) == 0


def _attends(arch: ArchitectureConfig, layer: int, *, recurs: bool) -> bool:
    known = traits(arch.arch)
    if known.is_encoder or not known.keeps_kv:  # it keeps nothing of earlier tokens (create_memory)
        return False
    if known.recurrent == "without heads or width":
        return at_layer(arch.n_head_kv, layer) != 0 and at_layer(arch.n_ff, layer) == 0
    if recurs and (arch.full_attention_interval or not isinstance(arch.n_head_kv, int)):
        return False  # else it keeps a state beside keys and values: as in falcon-h1, or nothing says which
    return at_layer(arch.n_head_kv, layer) != 0


def key_length(arch: ArchitectureConfig, *, sliding: bool = False) -> int:
    """Width of one K head (MLA: the whole latent row, kv_lora + rope)."""
    if sliding and arch.key_length_swa:
        return arch.key_length_swa
    if is_mla(arch):
        return arch.kv_lora_rank + arch.rope_dim if arch.kv_lora_rank and arch.rope_dim else arch.key_length
    return arch.key_length or arch.n_embd // max(1, widest(arch.n_head))


def value_length(arch: ArchitectureConfig, *, sliding: bool = False) -> int:
    """Width of one V head."""
    if sliding and arch.value_length_swa:
        return arch.value_length_swa
    return arch.value_length or arch.n_embd // max(1, widest(arch.n_head))


MIXERS = (
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_q_b", "attn_kv_b", "attn_k_b", "attn_v_b"),
    *("ssm_in", "ssm_out", "ssm_conv1d", "shortconv.in_proj", "shortconv.conv", "shortconv.out_proj", "attn_norm"),
)
"""Tensors by which the tokens of a layer are mixed; of norms one stands for all."""


def layer_devices(n_layer: int, settings: Settings) -> tuple[str, ...]:
    """Device of each repeating layer and, last, of the output layer.

    The last n_gpu_layers of n_layer + 1 are offloaded, the output first; they are divided in order by the
    cumulated split. Source: llama-model.cpp load_tensors (get_layer_buft_list).
    """
    count = min(settings.n_gpu_layers, n_layer + 1) if settings.devices else 0
    return _divided_layers(n_layer, count, settings.devices, settings.tensor_split)


@lru_cache(maxsize=1024)
def _divided_layers(n_layer: int, count: int, devices: tuple[str, ...], split: tuple[float, ...]) -> tuple[str, ...]:
    """`layer_devices` with the last `count` offloaded; asked for several times a server, of few kinds."""
    start = n_layer + 1 - count
    bounds = list(accumulate(split))
    places = (bisect_right(bounds, layer / count * bounds[-1]) for layer in range(count))
    return (*(RAM for _ in range(start)), *(devices[min(place, len(devices) - 1)] for place in places))


def divided(by_device: Mapping[str, int], settings: Settings, *, everywhere: bool) -> dict[str, int]:
    """What layers put on devices, as `split_mode` divides it; the host's share stays.

    `everywhere`: matrices, of which each device has rows (row) or its part (tensor). Else K/V and states: with the
    main device (row), or divided as the matrices (tensor).
    """
    if settings.split_mode not in ("row", "tensor") or len(settings.devices) < 2:
        return dict(by_device)
    total = sum(size for device, size in by_device.items() if device != RAM)
    found = {RAM: by_device[RAM]} if RAM in by_device else {}
    if not everywhere and settings.split_mode == "row":
        return found | {settings.main: total}
    shares = zip(settings.devices, settings.tensor_split, strict=False)
    return found | {device: ceil(total * share) for device, share in shares}


def torn(n_layer: int, settings: Settings) -> frozenset[str]:
    """Devices, or the host, to which rules move the mixing of layers that are elsewhere: K/V and states are copied."""
    found = set()
    for il, place in enumerate(layer_devices(n_layer, settings)[:-1] if settings.placement else ()):
        for name in (f"blk.{il}.{stem}.weight" for stem in MIXERS):
            device = next((to for rule, to in settings.placement if re.search(rule, name)), place)
            found |= {device} - {place}
    return frozenset(found)


def fully_offloaded(n_layer: int, settings: Settings) -> bool:
    """Whether every layer, its experts and its KV are on devices: the host then only feeds inputs."""
    return (
        bool(settings.devices)
        and settings.n_gpu_layers > n_layer
        and not settings.n_cpu_moe
        and settings.kv_offload
        and settings.flash_attention
        and not settings.n_cpu_ffn
        and all(device != RAM for _, device in settings.placement)
    )
