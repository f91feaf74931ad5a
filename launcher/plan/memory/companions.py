"""What a server loads beside its model: a draft model, a multimodal projector. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from launcher.ir.catalog import ModelFile, ProjectorFile
from launcher.ir.config import ArchitectureConfig, DraftConfig
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.memory.compute import on_card
from launcher.plan.memory.compute_bound import head_width, micro_batch
from launcher.plan.memory.layer_kinds import widest
from launcher.plan.memory.pictures import image_compute
from launcher.plan.memory.placement import layer_devices
from launcher.sizes import MIB

F32 = 4
IMAGE = 150 * MIB
"""Host memory of one large image being encoded (measured)."""


def draft_settings(settings: Settings, config: DraftConfig, draft: ModelFile, target: ArchitectureConfig) -> Settings:
    """The draft's own choices: the target's context and slots, its own K/V types and layers on devices.

    A number of experts that is given holds for a draft of the target's architecture, too (`--override-kv`).
    """
    arch = draft.architecture
    given = arch.arch == target.arch and settings.n_expert_used != target.n_expert_used
    layers = arch.n_layer + 1 if config.n_gpu_layers == "all" else config.n_gpu_layers
    devices = settings.devices if config.devices is None else config.devices
    return msgspec.structs.replace(
        own_context(settings, config),
        devices=devices,
        tensor_split=settings.tensor_split if devices == settings.devices else tuple(1 / len(devices) for _ in devices),
        n_gpu_layers=min(layers, arch.n_layer + 1) if devices else 0,
        n_cpu_moe=0,
        n_cpu_ffn=0,
        placement=(),
        n_expert_used=settings.n_expert_used if given else arch.n_expert_used,
    )


def own_context(settings: Settings, config: DraftConfig) -> Settings:
    """What holds for any context that drafts: the target's tokens and slots, its own K/V types, no speculation."""
    return msgspec.structs.replace(
        settings,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        draft_n_max=0,
        draft_kind="",
        ngram=None,
        context_checkpoints=0,
        cache_ram_mib=0,
    )


def adapter_parts(adapters: Sequence[int], arch: ArchitectureConfig, settings: Settings) -> Iterator[Part]:
    """LoRA adapters of so many bytes: with the layers that they are over, read and never mapped; and their products.

    Source: llama-adapter.cpp (the model's buffer types), llama-graph.cpp build_lora_mm: beside each product of a
    matrix there are that of the adapter and its scaled copy.
    """
    if not adapters:
        return
    places = layer_devices(arch.n_layer, settings)[:-1]
    product = micro_batch(settings) * F32 * max(widest(arch.n_ff), head_width(arch), arch.n_embd, arch.n_ff_exp)
    for device in dict.fromkeys((RAM, *places)):
        count = places.count(device)
        size = sum(-(-size * count // max(1, len(places))) for size in adapters)
        yield Part(device=device, component="overhead", committed=size)
        yield Part(device=device, component="compute", committed=2 * product if count else 0)


def projector_parts(projector: ProjectorFile, settings: Settings) -> Iterator[Part]:
    """Projector tensors and compute where it runs: as written, else on the server's first device, else on the host.

    What is declared is the compute of the largest image; else the server warms up with one of some size, and one of
    the largest has its buffer grow. Images being encoded come on top. Source: mtmd/clip.cpp (weights are read, never
    mapped).
    """
    device = settings.devices[0] if settings.devices else RAM
    device = settings.projector_device or device
    start = most = projector.compute_bytes
    if (encoder := projector.encoder) is not None and not most:
        sizes = (image_compute(encoder, n, flash_attention=settings.flash_attention) for n in encoder.patches)
        start, most = (n if device == RAM or settings.plain_devices else on_card(n) for n in sizes)
    later = max(0, most - start)
    yield Part(device=device, component="projector", committed=projector.tensor_bytes + start, later=later)
    yield Part(device=RAM, component="projector", later=IMAGE * settings.slots)
