"""Compute buffers: a bound on what llama_context::sched_reserve takes, never under. Pure.

`compute_bound` has the bound of one backend; here it is put on host and devices. The exact size is the server's own to
tell (`launch plan --prove`).
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import Part
from launcher.ir.settings import RAM, Settings
from launcher.plan.memory.compute_bound import COMPARED, SLACK, compute_bound, taken_over
from launcher.plan.memory.kv import row_bytes, sliding_cells, token_bytes
from launcher.plan.memory.layer_kinds import Layers
from launcher.plan.memory.placement import fully_offloaded, torn
from launcher.plan.memory.recurrent import state_bytes
from launcher.sizes import MIB

NEVER_COMPARED, UNKNOWN_DEVICE = 30, 10
"""Percent on top, with `RESERVE`: for architectures that no server was asked about, and for devices whose allocator was
not compared (CUDA, ROCm, Vulkan, Metal)."""
RESERVE = 16 * MIB
FED = 5
"""Rows that a host holds which only feeds devices: given, looked up, mixed, scaled or normed. As many may come over
where host and devices take turns."""
PIPELINED = 4
"""Batches under way at once where layers are split over several devices: each has inputs of its own
(ggml-backend.cpp GGML_SCHED_MAX_COPIES)."""
SCATTERED = 4
"""Further copies of a layer's recurrent states on each side, where rules have its mixer elsewhere than them."""
COPIES = 2
"""A layer's K/V or states that are kept on the host are copied to the device, and rearranged there."""


def not_compared(arch: ArchitectureConfig) -> str:
    """Why the figures of a model rest on its measures alone; "" where they were held against servers."""
    return "" if arch.arch in COMPARED else f"the graph of {arch.arch} is not known"


def compute_parts(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> Iterator[Part]:
    """Compute buffers by device: whole on each side, unless everything is offloaded and the host only feeds devices."""
    bound = compute_bound(arch, kinds, settings)
    whole = bound.whole
    if not_compared(arch):
        whole += whole * NEVER_COMPARED // 100 + RESERVE
    rows = FED * bound.row * (1 + arch.n_deepstack)
    more = (PIPELINED - 1) * (bound.inputs + rows) if _pipelined(kinds.n_layer, settings) else 0
    fed = fully_offloaded(kinds.n_layer, settings)
    host = min(whole, bound.inputs + rows + SLACK) if fed else whole
    pulled = torn(kinds.n_layer, settings) - {RAM}
    scattered = SCATTERED * _layer_states(arch, kinds, settings) if pulled else 0
    yield Part(device=RAM, component="compute", committed=host + more + scattered)
    if not settings.devices:
        return
    device = whole + more if fed else max(whole, bound.inputs + bound.row + taken_over(arch, settings)) + more + rows
    # lfm2's devices compute the attention of the host's layers before them (dry runs of b10068)
    copied = not settings.kv_offload or (arch.shortconv_l_cache > 0 and not fed)
    moved = copied or pulled
    beside = COPIES * max(_layer_kv(arch, kinds, settings), _layer_states(arch, kinds, settings)) if moved else 0
    for name in settings.devices:
        size = device + (beside if copied or name in pulled else 0)
        size += scattered if name in pulled else 0
        yield Part(device=name, component="compute", committed=size if settings.plain_devices else on_card(size))


def on_card(size: int) -> int:
    """A buffer of `size` bytes on a device whose allocator was not compared."""
    return size + size * UNKNOWN_DEVICE // 100 + RESERVE


def _pipelined(n_layer: int, settings: Settings) -> bool:
    """Whether devices work on several batches in turn (llama-context.cpp, `pipeline_parallel`)."""
    whole = settings.n_gpu_layers > n_layer and not settings.n_cpu_moe and settings.kv_offload
    moved = settings.n_cpu_ffn or settings.placement or settings.split_mode != "layer"
    return whole and not moved and len(settings.devices) > 1


def _layer_states(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Bytes of one layer's recurrent states."""
    return state_bytes(arch) * settings.slots if kinds.recurrent else 0


def _layer_kv(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """Bytes of the largest layer's K/V."""
    sizes = [0]
    for layers, cells, sliding in (
        (kinds.full, settings.n_ctx_seq, False),
        (kinds.sliding, sliding_cells(arch, settings), True),
    ):
        rows = (token_bytes(arch, kinds, settings, il, sliding=sliding) for il in layers)
        key = row_bytes(settings.cache_type_k, arch.indexer_key_length, settings) if not sliding else 0
        sizes.append((max(rows, default=0) + key) * cells * settings.streams)
    return max(sizes)
