"""What a server loads beside its model: a draft model, a multimodal projector. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.ir.catalog import ModelFile, ProjectorFile
from launcher.ir.config import DraftConfig
from launcher.plan.memory.layers import served_architecture
from launcher.plan.memory.parts import Part
from launcher.plan.settings import RAM, Settings
from launcher.sizes import MIB

IMAGE = 150 * MIB
"""Host memory of one large image being encoded (measured)."""


def draft_settings(settings: Settings, config: DraftConfig, draft: ModelFile) -> Settings:
    """The draft's own choices: the target's context and slots, its own K/V types and layers on devices."""
    arch = served_architecture(draft)
    layers = arch.n_layer + 1 if config.n_gpu_layers == "all" else config.n_gpu_layers
    return msgspec.structs.replace(
        settings,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        n_gpu_layers=min(layers, arch.n_layer + 1) if settings.devices else 0,
        n_cpu_moe=0,
        n_expert_used=arch.n_expert_used,
        draft_n_max=0,
        ngram=None,
        context_checkpoints=0,
        cache_ram_mib=0,
    )


def projector_parts(projector: ProjectorFile, settings: Settings) -> Iterator[Part]:
    """Projector tensors and compute on the first device, if layers are offloaded, else on the host.

    Images being encoded come on top. Source: mtmd/clip.cpp (the weights are read, never mapped).
    """
    device = settings.devices[0] if settings.devices and settings.n_gpu_layers else RAM
    size = projector.tensor_bytes + projector.compute_bytes
    yield Part(device=device, component="projector", committed=size)
    yield Part(device=RAM, component="projector", later=IMAGE * settings.slots)
