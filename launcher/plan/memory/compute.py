"""Compute buffers: what llama_context::sched_reserve takes. Pure.

Simulated to the byte where the graph is described in `graph` and runs on the CPU alone, or on one device that has every
layer. All others (layers on both sides, several devices, unknown architectures): the bound of `compute_bound`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.ir.config import ArchitectureConfig
from launcher.plan.memory.compute_bound import compute_bound, micro_batch, with_margin
from launcher.plan.memory.graph import Batch, Cache, NotSimulatedError, Sizes, compute_bytes
from launcher.plan.memory.kv import sliding_cells
from launcher.plan.memory.layers import Layers, at, value_length
from launcher.plan.memory.output import outputs_max
from launcher.plan.memory.parts import Part
from launcher.plan.memory.placement import fully_offloaded
from launcher.plan.memory.weights import Simulated, WeightTable
from launcher.plan.settings import RAM, Settings
from launcher.sizes import KIB

COPIES = 64 * KIB
"""Bytes that the scheduler may need beside: copies of views of inputs, tens of bytes each."""
SMALL = 4
"""A micro-batch of fewer tokens a slot than this is not sure to need more than one token of each slot."""


def batches(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Batch]:
    """The batches that graphs are reserved for: a full micro-batch, and one token a slot where that may need more.

    Raises NotSimulatedError for settings that no config has: without tokens, slots or cells there is no graph.
    """
    tokens = micro_batch(settings)
    if min(tokens, settings.slots, settings.n_ctx_seq) < 1:
        raise NotSimulatedError("nothing to compute")
    whole = Batch(
        tokens=tokens,
        sequences=settings.slots,
        outputs=min(tokens, outputs_max(settings)),
        streams=settings.streams,
        flash_attention=settings.flash_attention,
        k_kind=settings.cache_type_k,
        v_kind=settings.cache_type_v,
        full=_cache(arch, kinds.full, settings.n_ctx_seq, sliding=False),
        sliding=_cache(arch, kinds.sliding, sliding_cells(arch, settings), sliding=True),
        experts_used=settings.n_expert_used,
        pooling=settings.pooling if settings.embedding else "",
        offloaded=bool(settings.devices),
    )
    yield whole
    if tokens < SMALL * settings.slots:
        yield msgspec.structs.replace(whole, tokens=settings.slots, outputs=min(settings.slots, whole.outputs))


def _cache(arch: ArchitectureConfig, layers: tuple[int, ...], cells: int, *, sliding: bool) -> Cache | None:
    """The cache of `layers`; None without layers."""
    if not layers:
        return None
    width = value_length(arch, sliding=sliding)
    return Cache(cells=cells, v_width=max(at(arch.n_head_kv, il) for il in layers) * width)


def simulated(
    arch: ArchitectureConfig, kinds: Layers, settings: Settings, table: WeightTable, known: Simulated
) -> Sizes | None:
    """The buffers of a server on the CPU alone, or wholly on one device; None where its graph is not described.

    `known` has what was found so far, and gets more.
    """
    if settings.devices and not _on_one_device(kinds.n_layer, settings):
        return None
    try:
        found = [_sizes(arch, batch, table, known) for batch in batches(arch, kinds, settings)]
    except NotSimulatedError:
        return None
    return Sizes(max(f.host for f in found), max(f.device for f in found))


def _on_one_device(n_layer: int, settings: Settings) -> bool:
    """Whether every layer, its experts and its K/V are on one device."""
    whole = settings.n_gpu_layers > n_layer and not settings.n_cpu_moe and settings.kv_offload
    return whole and len(settings.devices) == 1


def _sizes(arch: ArchitectureConfig, batch: Batch, table: WeightTable, known: Simulated) -> Sizes:
    """Buffers for one batch. Raises NotSimulatedError."""
    key = (arch, batch, id(table))  # tables live as long as what is known of them
    if key not in known:
        known[key] = compute_bytes(arch, batch, table.kinds, table.order)
    return known[key]


def compute_parts(
    arch: ArchitectureConfig, kinds: Layers, settings: Settings, table: WeightTable, known: Simulated
) -> Iterator[Part]:
    """Compute buffers by device: simulated, else the bound.

    A simulated device's own allocator is known for RPC alone; others get the margin on top.
    """
    sizes = simulated(arch, kinds, settings, table, known)
    if sizes is None:
        yield from _bounds(arch, kinds, settings)
    elif not settings.devices:
        yield Part(device=RAM, component="compute", committed=sizes.host)
    else:
        for name, size in zip((RAM, *settings.devices), sizes, strict=True):
            room = size + COPIES if settings.plain_devices else with_margin(arch, size)
            yield Part(device=name, component="compute", committed=room)


def _bounds(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """The bound: whole on each side unless everything is offloaded.

    A full offload needs a row of activations less on the device, and masks and two rows on the host.
    """
    bound = compute_bound(arch, kinds, settings)
    host = device = bound.whole
    if fully_offloaded(kinds.n_layer, settings):
        host, device = bound.masks + 2 * bound.row, bound.whole - bound.row
    yield Part(device=RAM, component="compute", committed=with_margin(arch, host))
    for name in settings.devices:
        yield Part(device=name, component="compute", committed=with_margin(arch, device))
