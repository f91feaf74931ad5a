"""All parts of a server, and their sum by device. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from launcher.ir.catalog import ModelFile, ProjectorFile
from launcher.ir.config import ArchitectureConfig, DraftConfig
from launcher.ir.plan import DeviceMemory, Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.builds import as_built, keeps_nextn_kv, loads_nextn
from launcher.plan.memory.companions import adapter_parts, draft_settings, own_context, projector_parts
from launcher.plan.memory.compute import compute_parts
from launcher.plan.memory.host import (
    checkpoint_part,
    context_overhead,
    device_contexts,
    process_overhead,
    prompt_cache_part,
    speculation_part,
)
from launcher.plan.memory.kv import kv_parts
from launcher.plan.memory.layer_kinds import layers, nextn_layers
from launcher.plan.memory.output import output_part
from launcher.plan.memory.recurrent import recurrent_parts
from launcher.plan.memory.weights import WeightTables, weight_parts


class Companions(msgspec.Struct, frozen=True, kw_only=True):
    """What is loaded beside the model."""

    draft: ModelFile | None = None
    draft_config: DraftConfig | None = None
    projector: ProjectorFile | None = None
    adapters: tuple[int, ...] = ()
    """Bytes of each LoRA adapter's tensors."""


def file_identity(model: ModelFile) -> str:
    """What makes two files the same pages: the inode where known, else the path of part 1."""
    part = model.parts[0]
    return f"{part.inode[0]}:{part.inode[1]}" if part.inode else part.path


def context_parts(model: ModelFile, settings: Settings, tables: WeightTables) -> Iterator[Part]:
    """Parts of one model with one context: weights, KV, recurrent state, output, compute, host metadata."""
    arch = as_built(model.architecture, settings.build)
    kinds = layers(arch, nextn_kv=keeps_nextn_kv(arch, settings.build))
    table = tables.of(model, settings, nextn=loads_nextn(arch, settings.build, drafts=settings.draft_kind == "mtp"))
    yield from weight_parts(table, settings, file_identity(model))
    yield from kv_parts(arch, kinds, settings)
    yield from recurrent_parts(arch, kinds, settings)
    yield output_part(arch, settings)
    yield from compute_parts(arch, kinds, settings)
    yield context_overhead(arch, kinds, settings, table.count)
    yield checkpoint_part(arch, kinds, settings)
    yield speculation_part(arch, kinds, settings)


def further_parts(arch: ArchitectureConfig, settings: Settings) -> Iterator[Part]:
    """The context in which the model's own layers for further tokens draft; its weights are the model's.

    Source: common/speculative.cpp common_speculative_init_result (LLAMA_CONTEXT_TYPE_MTP).
    """
    kinds = nextn_layers(arch)
    plain = msgspec.structs.replace(arch, indexer_key_length=0)
    parts = [*kv_parts(plain, kinds, settings), output_part(arch, settings), *compute_parts(plain, kinds, settings)]
    for part in parts:
        yield msgspec.structs.replace(part, component="draft")


def server_parts(model: ModelFile, settings: Settings, beside: Companions, tables: WeightTables) -> tuple[Part, ...]:
    """Every part of one server process."""
    parts = list(context_parts(model, settings, tables))
    parts.append(process_overhead(model.architecture, settings))
    parts.append(prompt_cache_part(settings))
    parts += device_contexts(settings)
    if beside.draft is not None and beside.draft_config is not None:
        own = draft_settings(settings, beside.draft_config, beside.draft, model.architecture)
        parts += (msgspec.structs.replace(p, component="draft") for p in context_parts(beside.draft, own, tables))
    if beside.draft is None and beside.draft_config is not None and beside.draft_config.kind == "mtp":
        parts += further_parts(model.architecture, own_context(settings, beside.draft_config))
    parts += adapter_parts(beside.adapters, model.architecture, settings)
    if beside.projector is not None:
        parts += projector_parts(beside.projector, settings)
    return tuple(parts)


def add_up(parts: Iterable[Part], *, shared: dict[str, tuple[str, ...]] | None = None) -> tuple[DeviceMemory, ...]:
    """Parts summed by device, the host first, then by name; `shared` maps a device to who shares its files."""
    by_device: defaultdict[str, list[Part]] = defaultdict(list, {RAM: []})
    for part in parts:
        by_device[part.device].append(part)
    names = sorted(by_device, key=lambda name: (name != RAM, name))
    return tuple(_device(name, by_device[name], (shared or {}).get(name, ())) for name in names)


def _device(name: str, parts: list[Part], shared_with: tuple[str, ...]) -> DeviceMemory:
    """One device's sum. While loading, staging comes on top of the weights before there is a context."""
    component: defaultdict[str, int] = defaultdict(int)
    committed = later = growth = file = locked = loading = transient = 0
    for part in parts:
        component[f"{part.component}_bytes"] += part.committed + part.file
        committed += part.committed
        later += part.later
        growth += part.growth
        file += part.file
        locked += part.locked
        loading += part.committed if part.component in ("model", "overhead") else 0
        transient = max(transient, part.transient)
    return DeviceMemory(
        device=name,
        committed_bytes=committed,
        peak_bytes=max(committed + later, loading + transient),
        growth_bytes=growth,
        file_bytes=file,
        locked_bytes=locked,
        shared_with=shared_with,
        **component,
    )


def estimate(
    model: ModelFile,
    settings: Settings,
    *,
    draft: ModelFile | None = None,
    draft_config: DraftConfig | None = None,
    projector: ProjectorFile | None = None,
) -> tuple[DeviceMemory, ...]:
    """What one server with these settings takes on each device, in bytes; the host ("ram") comes first."""
    beside = Companions(draft=draft, draft_config=draft_config, projector=projector)
    return add_up(server_parts(model, settings, beside, WeightTables()))
