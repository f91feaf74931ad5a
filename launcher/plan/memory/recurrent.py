"""Recurrent state, exact: always F32, the same at any context. Source: llama-memory-recurrent.cpp. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.builds import rolled_back
from launcher.plan.memory.layer_kinds import Layers
from launcher.plan.memory.placement import divided, layer_devices

F32 = 4


def conv_dim(arch: ArchitectureConfig) -> int:
    """Channels that the short convolution runs over."""
    return arch.ssm_d_inner + 2 * arch.ssm_n_group * arch.ssm_d_state


def state_bytes(arch: ArchitectureConfig) -> int:
    """One layer's state of one sequence: convolution history and SSM state (llama-hparams.cpp n_embd_r, n_embd_s).

    lfm2 keeps only the history of its short convolution.
    """
    if arch.shortconv_l_cache:
        return (arch.shortconv_l_cache - 1) * arch.n_embd * F32
    history = max(0, arch.ssm_d_conv - 1) * conv_dim(arch)
    return (history + arch.ssm_d_state * arch.ssm_d_inner) * F32


def copies(arch: ArchitectureConfig, settings: Settings) -> int:
    """States of one slot."""
    return 1 + rolled_back(arch, settings.draft_kind, settings.draft_n_max)


def recurrent_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """State bytes by device: one state a slot, and those that drafted tokens are rolled back to."""
    places = layer_devices(kinds.n_layer, settings)
    count = Counter(places[layer] if settings.kv_offload else RAM for layer in kinds.recurrent)
    one = state_bytes(arch) * settings.slots * copies(arch, settings)
    sizes = {device: n * one for device, n in count.items()}
    for device, size in divided(sizes, settings, everywhere=False).items():
        yield Part(device=device, component="recurrent", committed=size)
