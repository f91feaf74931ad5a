"""Which device each layer is on. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from math import ceil

from launcher.ir.settings import RAM, Settings

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

    def device(layer: int) -> str:
        if layer < start:
            return RAM
        place = bisect_right(bounds, (layer - start) / count * bounds[-1])
        return devices[min(place, len(devices) - 1)]

    return tuple(device(layer) for layer in range(n_layer + 1))


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
