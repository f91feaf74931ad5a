"""One server process: the model's context, what the host holds beside buffers, and companions; summed by device. Pure.

Constants of the host were measured on llama-server b10434 (MEMORY.md), rounded up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from launcher.ir.architectures import traits
from launcher.ir.catalog import ImageEncoder, ModelFile, ProjectorFile
from launcher.ir.config import ArchitectureConfig, DraftConfig
from launcher.ir.plan import RAM, DeviceMemory, Part, Settings
from launcher.plan.builds import as_built, keeps_nextn_kv, loads_nextn, rolled_back
from launcher.plan.memory.caches import cells, kv_parts, output_part, recurrent_parts, state_bytes, token_bytes
from launcher.plan.memory.compute import SLACK, compute_parts, head_width, micro_batch, on_card
from launcher.plan.memory.layout import Layers, layer_devices, layers, nextn_layers, widest
from launcher.plan.memory.weights import WeightTables, table_of, weight_parts
from launcher.sizes import MIB

PROCESS = 15 * MIB // 2
LIBRARIES = 26 * MIB
"""Pages of the binary and its libraries (CPU and Vulkan builds); shared among servers, yet counted for each."""
TOKEN = 230
MERGE = 190
CELL = 48
GRAPH_NODE = 880
NODES_MIN = 1024
SLOT = 136_315
"""0.13 MiB per slot, without its candidate tokens."""
CANDIDATE = 12
"""Bytes per candidate token (llama_token_data) of a slot."""
NGRAM_MOD = 16 * MIB
CHECKPOINT_STEP = 8192
IMAGE = 150 * MIB
"""Host memory of one large image being encoded (measured)."""

F32, F16 = 4, 2
HOLES = 5
"""Percent of live values added for holes between them, beside one row of activations."""
SEPARATE, FUSED = 5, 6.5
"""Rows of activations that attention has at once: residual, Q, K, V and one rotated, or one matrix for the three and
two rotated; K and V in half precision take the place of what is done with."""
GAPS = 1.5
"""Rows of attention's room, beside that of the image, into which the wide values of a feed-forward do not fit."""


def context_overhead(arch: ArchitectureConfig, kinds: Layers, settings: Settings, tensors: int) -> Part:
    """What each model context costs the host beside its buffers (a draft has one too), at load and later.

    At load: tokens and merges as the tokenizer holds them, graph metadata (880 B for each of max_nodes,
    llama-context.cpp graph_max_nodes), and metadata of cache cells. Later: the CPU backend's work buffer; checkpoints
    of full slots, at most one each 8192 tokens and four more; and one a slot that verifying drafted tokens may have to
    go back to, where states cannot be rolled back (server-context.cpp "speculative decoding will use checkpoints").
    """
    nodes = max(NODES_MIN, 8 * tensors)
    if traits(arch.arch).many_nodes:
        nodes = max(40 * micro_batch(settings), 32 * tensors)
    vocabulary = arch.n_vocab * TOKEN + arch.n_merges * MERGE
    checkpoints = (
        0 if settings.embedding else min(settings.context_checkpoints, settings.n_ctx_seq // CHECKPOINT_STEP + 4)
    )
    drafts = settings.draft_n_max > 0 or settings.ngram is not None
    goes_back = drafts and not rolled_back(arch, settings)
    kept = settings.slots * (max(0, checkpoints) + goes_back)
    return Part(
        device=RAM,
        component="overhead",
        committed=vocabulary + nodes * GRAPH_NODE + CELL * cells(arch, kinds, settings),
        later=work_bytes(arch, kinds, settings) + (kept * checkpoint_bytes(arch, kinds, settings) if kept else 0),
    )


def work_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """The CPU backend's work buffer, bound: one quantised activation, or the scores without flash attention."""
    u = micro_batch(settings)
    widths = (arch.n_embd, widest(arch.n_ff), arch.n_ff_exp * settings.n_expert_used, arch.ssm_d_inner)
    size = u * max(*widths, head_width(arch)) * 4
    if not settings.flash_attention and (kinds.full or kinds.sliding):
        size += u * settings.n_ctx_seq * widest(arch.n_head) * 2
    return size


def checkpoint_bytes(arch: ArchitectureConfig, kinds: Layers, settings: Settings) -> int:
    """One context checkpoint: a recurrent state, or the window of the sliding layers; 0 where none is made.

    Source: server-context.cpp create_checkpoint.
    """
    if kinds.recurrent:
        return len(kinds.recurrent) * state_bytes(arch)
    if not kinds.sliding or settings.swa_full:
        return 0
    row = sum(token_bytes(arch, kinds, settings, layer, sliding=True) for layer in kinds.sliding)
    return row * min(arch.n_swa, settings.n_ctx_seq)


def process_parts(arch: ArchitectureConfig, settings: Settings) -> Iterator[Part]:
    """The process itself: its libraries, slots and n-gram table, its prompt cache, and what it holds of each device.

    The prompt cache (--cache-ram) is filled by completions up to its limit, with images or without (server-context.cpp
    get_available_slot). Without a limit (-1) nothing is counted: `plan/prompt-cache-unlimited` says so.
    """
    size = PROCESS + LIBRARIES + settings.slots * (SLOT + CANDIDATE * arch.n_vocab)
    if settings.ngram is not None and settings.ngram.kind == "mod":
        size += NGRAM_MOD
    cache = 0 if settings.embedding else max(0, settings.cache_ram_mib) * MIB
    yield Part(device=RAM, component="overhead", committed=size, growth=cache)
    for device, held in settings.contexts:
        if held:
            yield Part(device=device, component="overhead", committed=held)


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
    """Settings of any context that drafts: the target's tokens and slots, its own K/V types, no speculation."""
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
    device = settings.projector_device or next(iter(settings.devices), RAM)
    start = most = projector.compute_bytes
    if (encoder := projector.encoder) is not None and not most:
        sizes = (image_compute(encoder, n, flash_attention=settings.flash_attention) for n in encoder.patches)
        start, most = (n if device == RAM or settings.plain_devices else on_card(n) for n in sizes)
    later = max(0, most - start)
    yield Part(device=device, component="projector", committed=projector.tensor_bytes + start, later=later)
    yield Part(device=RAM, component="projector", later=IMAGE * settings.slots)


class Companions(msgspec.Struct, frozen=True, kw_only=True):
    """What is loaded beside the model."""

    draft: ModelFile | None = None
    draft_config: DraftConfig | None = None
    projector: ProjectorFile | None = None
    adapters: tuple[int, ...] = ()
    """Bytes of each LoRA adapter's tensors."""


def file_identity(model: ModelFile) -> str:
    """Key of the pages of a file: the inode where known, else the path of part 1."""
    part = model.parts[0]
    return f"{part.inode[0]}:{part.inode[1]}" if part.inode else part.path


def context_parts(model: ModelFile, settings: Settings, tables: WeightTables) -> Iterator[Part]:
    """Parts of one model with one context: weights, KV, recurrent state, output, compute, host metadata."""
    arch = as_built(model.architecture, settings.build)
    kinds = layers(arch, nextn_kv=keeps_nextn_kv(arch, settings.build))
    nextn = loads_nextn(arch, settings.build, drafts=settings.draft_kind == "mtp")
    table = table_of(tables, model, settings, nextn=nextn)
    yield from weight_parts(table, settings, file_identity(model))
    yield from kv_parts(arch, kinds, settings)
    if kinds.recurrent:
        yield from recurrent_parts(arch, kinds, settings)
    yield output_part(arch, settings)
    yield from compute_parts(arch, kinds, settings)
    yield context_overhead(arch, kinds, settings, table.count)


def further_parts(arch: ArchitectureConfig, settings: Settings) -> Iterator[Part]:
    """The context in which the model's own next-token-prediction layers draft; its weights are the model's.

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
    parts += process_parts(model.architecture, settings)
    if beside.draft is not None and beside.draft_config is not None:
        own = draft_settings(settings, beside.draft_config, beside.draft, model.architecture)
        parts += (msgspec.structs.replace(p, component="draft") for p in context_parts(beside.draft, own, tables))
    if beside.draft is None and beside.draft_config is not None and beside.draft_config.kind == "mtp":
        parts += further_parts(model.architecture, own_context(settings, beside.draft_config))
    if beside.adapters:
        parts += adapter_parts(beside.adapters, model.architecture, settings)
    if beside.projector is not None:
        parts += projector_parts(beside.projector, settings)
    return tuple(parts)


def image_compute(encoder: ImageEncoder, patches: int, *, flash_attention: bool) -> int:
    """Bytes that an image encoder takes for `patches` patches: the largest of its parts, and the allocator's holes.

    A bound, never under. Source: tools/mtmd/clip.cpp (build_vit, build_attn, build_ffn, reserve_compute_meta) and
    tools/mtmd/models of b10434 and b11434, whose figures for these encoders are the same as those of b10068.
    """
    row = F32 * patches * encoder.n_embd
    tokens = -(-patches // encoder.merge**2)
    given = F32 * tokens * encoder.n_embd_out
    masks = F32 * patches**2 if encoder.windowed else 0
    halves = F16 * patches**2 if encoder.windowed and flash_attention else 0
    layered = given * 2 * encoder.n_deepstack
    pixels = 3 * patches * encoder.patch_size**2
    raw = F32 * pixels
    first = raw + encoder.kernel_bytes * pixels + 2 * row + masks + halves
    attention = int((FUSED if encoder.fused else SEPARATE) * row) + layered
    if flash_attention:
        attention += 2 * halves
    else:
        attention += masks + F32 * patches**2 * encoder.n_head
    wide = F32 * patches * encoder.n_ff
    beside = 2 * wide if encoder.gated else 0
    # half a mask frees the room of the whole one, which wide values may or may not fit into
    room = max(masks, beside) + halves if flash_attention else beside + masks
    feed_forward = wide + room + 2 * row + int(GAPS * row) + raw + layered
    last = 3 * row + 2 * given + layered
    largest = max(first, attention, feed_forward, last)
    kept = F32 * encoder.n_embd * encoder.n_embd_out if encoder.turned else 0
    return largest + largest * HOLES // 100 + row + kept + SLACK


def add_up(parts: Iterable[Part], *, shared: dict[str, tuple[str, ...]] | None = None) -> tuple[DeviceMemory, ...]:
    """Parts added up per device, the host first, then by name; `shared`: device → the servers that share its files.

    While loading, staging comes on top of the weights before there is a context.
    """
    by_device: defaultdict[str, list[Part]] = defaultdict(list, {RAM: []})
    for part in parts:
        by_device[part.device].append(part)
    found = []
    for name in sorted(by_device, key=lambda name: (name != RAM, name)):
        component: defaultdict[str, int] = defaultdict(int)
        committed = later = growth = file = locked = loading = transient = 0
        for part in by_device[name]:
            component[f"{part.component}_bytes"] += part.committed + part.file
            committed += part.committed
            later += part.later
            growth += part.growth
            file += part.file
            locked += part.locked
            loading += part.committed if part.component in ("model", "overhead") else 0
            transient = max(transient, part.transient)
        memory = DeviceMemory(
            device=name,
            committed_bytes=committed,
            peak_bytes=max(committed + later, loading + transient),
            growth_bytes=growth,
            file_bytes=file,
            locked_bytes=locked,
            shared_with=(shared or {}).get(name, ()),
            **component,
        )
        found.append(memory)
    return tuple(found)


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
