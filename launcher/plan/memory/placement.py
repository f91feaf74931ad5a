"""Which device each layer is on. Pure."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from launcher.plan.settings import RAM, Settings


def layer_devices(n_layer: int, settings: Settings) -> tuple[str, ...]:
    """Device of each repeating layer and, last, of the output layer.

    The last n_gpu_layers of n_layer + 1 are offloaded, the output first; they are divided in order by the
    cumulated split. Source: llama-model.cpp load_tensors (get_layer_buft_list).
    """
    count = min(settings.n_gpu_layers, n_layer + 1) if settings.devices else 0
    start = n_layer + 1 - count
    bounds = list(accumulate(settings.tensor_split))

    def device(layer: int) -> str:
        if layer < start:
            return RAM
        place = bisect_right(bounds, (layer - start) / count * bounds[-1])
        return settings.devices[min(place, len(settings.devices) - 1)]

    return tuple(device(layer) for layer in range(n_layer + 1))


def fully_offloaded(n_layer: int, settings: Settings) -> bool:
    """Whether every layer, its experts and its KV are on devices: the host then only feeds inputs."""
    return (
        bool(settings.devices)
        and settings.n_gpu_layers > n_layer
        and not settings.n_cpu_moe
        and settings.kv_offload
        and settings.flash_attention
    )
