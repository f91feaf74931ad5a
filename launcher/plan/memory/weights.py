"""Weights: which device tensors land on, and the copies that the CPU backend makes of them. Pure.

Source: llama-model.cpp load_tensors and make_cpu_buft_list, llama-model-loader.cpp create_tensor, ggml-cpu/amx/mmq.cpp
ggml_backend_amx_get_alloc_size, ggml-cpu/repack.cpp.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod

import msgspec

from launcher.ir.architectures import traits, trunk
from launcher.ir.catalog import ModelFile, Tensor
from launcher.ir.plan import RAM, Part, Settings
from launcher.plan.memory.layout import divided, layer_devices, split_name

AMX_ROW = {"q4_0": 32, "q4_1": 32, "q8_0": 32, "q4_k": 256, "q5_k": 256, "q6_k": 256, "iq4_xs": 256, "f16": 16}
"""Types with AMX kernels → what ne0 must be a multiple of."""
AMX_EXTRA = {"q8_0": (4, 32), "q4_k": (4, 256), "q5_k": (4, 256), "iq4_xs": (2, 256)}
"""Bytes that the tile layout adds, per number of weights."""
REPACK_AVX2 = frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4"})
REPACK_AVX512 = REPACK_AVX2 | {"q2_k"}
INPUT = ("token_embd", "position_embd", "token_types", "per_layer_token_embd", "rope_freqs", "rope_factors")
"""Names of tensors that always stay on the CPU."""
NOT_MATMUL = ("_norm", "conv1d", "ssm_a", "ssm_d", "attn_sinks", "time_", "altup_", "rel_b")
"""Parts of tensor names read by operations other than MUL_MAT: extra buffer types refuse these."""
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
EXPERTS = ("ffn_up", "ffn_down", "ffn_gate", "ffn_gate_up")
FILE_ALIGNMENT = 32
SHARING_MODES = frozenset({"mmap", "mmap+mlock"})
LOCKING_MODES = frozenset({"mlock", "mmap+mlock"})


Rules = tuple[tuple[str, str], ...]
"""Regular expression → device."""


class Group(msgspec.Struct, kw_only=True):
    """Tensors that are placed together, in bytes.

    `tensors`: on a device. On the CPU `plain` stay as they are in the file, in each part between the offsets in
    `spans`; the rest becomes `copies` in anonymous memory.
    """

    tensors: int = 0
    plain: int = 0
    copies: int = 0
    spans: dict[int, tuple[int, int]] = {}

    def add(self, size: int, copy: int, part: int, start: int) -> None:
        """Count a tensor of `size` bytes at `start` of file `part`; `copy`: bytes of the CPU's copy, 0 = none."""
        self.tensors += size
        self.copies += copy
        if not copy:
            self.plain += size
            first, _ = self.spans.get(part, (start, 0))  # tensors come in the file's order
            self.spans[part] = (first, start + size)


class WeightTable(msgspec.Struct, kw_only=True):
    """A model's tensors by where they can be placed: one pass over the header serves every placement."""

    dense: tuple[Group, ...]
    """Per layer, all tensors but expert banks."""
    experts: tuple[Group, ...]
    inputs: Group
    output: Group
    placed: dict[str, Group]
    """Tensors that rules place elsewhere than their layer, per device."""
    tied: Group | None
    """The embedding a second time, as the output matrix of models without one."""
    largest: int = 0
    """Bytes of the largest tensor."""
    count: int = 0
    """Number of tensors."""


class CpuCopies(msgspec.Struct, frozen=True, kw_only=True):
    """Which extra buffer types this CPU and these settings use."""

    amx: bool
    repack: frozenset[str]


def cpu_copies(settings: Settings) -> CpuCopies:
    """Extra buffer types in use: none with --no-repack, nor where a GPU's host buffer comes before them."""
    features = settings.cpu_features
    if not settings.repack or (settings.devices and settings.host_buffer):
        return CpuCopies(amx=False, repack=frozenset())
    types = REPACK_AVX512 if "avx512f" in features else REPACK_AVX2 if "avx2" in features else frozenset[str]()
    return CpuCopies(amx="amx_int8" in features, repack=types)


Role = tuple[int, bool, bool]
"""How tensors of one name, type and shape are treated: bytes of their CPU copy, and whether they go with the inputs or
with an expert bank."""


def role(stem: str, tensor: Tensor, copies: CpuCopies) -> Role:
    """The role of `tensor`, whose name within its layer is `stem`."""
    is_input = stem.startswith(INPUT)
    matmul = not is_input and not any(mark in stem for mark in NOT_MATMUL)
    return copied_bytes(tensor, copies) if matmul else 0, is_input, is_bank(stem)


def is_bank(stem: str) -> bool:
    """Whether the tensor is a bank of experts' matrices."""
    return "exps." in stem and stem.split(".", 1)[0].replace("_chexps", "").replace("_exps", "") in EXPERTS


def copied_bytes(tensor: Tensor, copies: CpuCopies) -> int:
    """Bytes of the CPU's rearranged copy of a matrix; 0 where it is used as it is in the file."""
    dims = sum(1 for n in tensor.shape if n > 1)
    if dims < 2:
        return 0
    kind, row = tensor.type.lower(), tensor.shape[0]
    rows = tensor.shape[1] if len(tensor.shape) > 1 else 1
    banks = dims > 2 and "exps" in tensor.name
    if copies.amx and not banks and kind in AMX_ROW and rows % 32 == 0 and row % AMX_ROW[kind] == 0:
        extra, per = AMX_EXTRA.get(kind, (0, 1))
        return tensor.size_bytes + prod(tensor.shape) // per * extra
    if kind in copies.repack and rows % 8 == 0 and (banks or dims == 2):
        return tensor.size_bytes
    return 0


WeightTables = dict[tuple[str, str, CpuCopies, bool, Rules], WeightTable]
"""Tables of the models weighed so far: one pass over each header, however often a plan asks."""


def table_of(tables: WeightTables, model: ModelFile, settings: Settings, *, nextn: bool) -> WeightTable:
    """The table of `model` on the CPU of `settings`; `nextn`: with the layers for further tokens.

    Tensors go elsewhere than their layer as `placement` says, and dense feed-forwards of the first layers to the host.
    """
    layers = "|".join(map(str, range(settings.n_cpu_ffn)))
    dense = ((rf"^blk\.({layers})\.ffn_(up|down|gate)\.", RAM),) if layers else ()
    key = (model.path, model.header_digest, cpu_copies(settings), nextn, (*settings.placement, *dense))
    if key not in tables:
        tables[key] = weigh(model, key[2], nextn=nextn, placement=key[4])
    return tables[key]


def weigh(model: ModelFile, copies: CpuCopies, *, nextn: bool = False, placement: Rules = ()) -> WeightTable:
    """The tensors of `model` grouped; those of layers for further tokens are skipped but with `nextn`.

    `placement`: expression → device; the first found in a tensor's name counts (llama-model-loader.cpp).
    """
    compiled = [(re.compile(expression), device) for expression, device in placement]
    n_layer = model.architecture.n_layer
    table = WeightTable(
        dense=tuple(Group() for _ in range(n_layer)),
        experts=tuple(Group() for _ in range(n_layer)),
        inputs=Group(),
        output=Group(),
        placed={},
        tied=_tied(model, copies),
    )
    loaded = n_layer if nextn else trunk(model.architecture)
    for part, tensors in enumerate(_by_part(model)):
        _add_part(table, tensors, part, loaded=loaded, copies=copies, placement=compiled)
    moved = _ruled(EMBEDDING, compiled)
    if table.tied is not None and moved is not None:
        # the rule moves the output, too: on a device they are one tensor
        table.placed[moved].copies += table.tied.copies if moved == RAM else 0
        table.tied = None
    return table


def _add_part(
    table: WeightTable,
    tensors: Sequence[Tensor],
    part: int,
    *,
    loaded: int,
    copies: CpuCopies,
    placement: list[tuple[re.Pattern[str], str]],
) -> None:
    """Count the tensors of file `part`, but for those of layers from `loaded` on."""
    layers, outside = (table.dense, table.experts), (table.output, table.inputs)
    roles: dict[tuple[str, str, tuple[int, ...]], Role] = {}
    offset = 0
    for tensor in tensors:
        own, name = tensor.size_bytes, tensor.name
        start, offset = offset, offset + own + -own % FILE_ALIGNMENT
        layer, stem = split_name(name)
        if layer >= loaded:
            continue
        key = (stem, tensor.type, tensor.shape)
        kind = roles.get(key)
        if kind is None:
            kind = roles[key] = role(stem, tensor, copies)
            table.largest = max(table.largest, own)  # a role is of one size
        copy, is_input, bank = kind
        if placement and (elsewhere := _ruled(name, placement)) is not None:
            into = table.placed.setdefault(elsewhere, Group())
        else:
            into = layers[bank][layer] if layer >= 0 else outside[is_input]
        into.add(own, copy, part, start)
        table.count += 1


def _by_part(model: ModelFile) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each file of a model; all at once where it isn't known which hold which."""
    if not all(part.tensors for part in model.parts):
        yield model.tensors
        return
    end = 0
    for part in model.parts[:-1]:
        begin, end = end, end + part.tensors
        yield model.tensors[begin:end]
    yield model.tensors[end:]


def _ruled(name: str, placement: list[tuple[re.Pattern[str], str]]) -> str | None:
    return next((device for pattern, device in placement if pattern.search(name)), None)


def _tied(model: ModelFile, copies: CpuCopies) -> Group | None:
    """The embedding once more, where it is also the output matrix: nothing where both stay plain on the CPU."""
    by_name = {t.name: t for t in model.tensors if t.name in {EMBEDDING, OUTPUT}}
    embedding = by_name.get(EMBEDDING)
    if embedding is None or OUTPUT in by_name or traits(model.architecture.arch).is_encoder:
        return None
    return Group(tensors=embedding.size_bytes, copies=copied_bytes(embedding, copies))


def weight_parts(table: WeightTable, settings: Settings, source: str) -> Iterator[Part]:
    """Model bytes by device: on the host the mapping (or plain buffer) and the copies, on devices the tensors."""
    n_layer = len(table.dense)
    places = layer_devices(n_layer, settings)
    on_device: defaultdict[str, int] = defaultdict(int)
    host = [table.inputs]
    placed = [
        *zip(places, table.dense, strict=False),
        *((RAM if il < settings.n_cpu_moe else places[il], group) for il, group in enumerate(table.experts)),
        (places[-1], table.output),
        *([(places[-1], table.tied)] if table.tied else []),
        *table.placed.items(),
    ]
    for place, group in placed:
        if place == RAM:
            host.append(group)
        else:
            on_device[place] += group.tensors
    yield host_weights(host, settings, source=source, largest=table.largest)
    for device, size in divided(on_device, settings, everywhere=True).items():
        yield Part(device=device, component="model", committed=size)


def host_weights(groups: list[Group], settings: Settings, *, source: str, largest: int) -> Part:
    """The CPU's share: anonymous copies, and the rest file-backed (mmap) or in a buffer of its own.

    Of each part of the file a mapping spans the first to the last CPU tensor. mlock pins the mapping or the plain
    buffer, never the copies (they are not host buffers to llama.cpp); without mmap the largest tensor passes through
    a staging buffer.
    """
    copies = sum(g.copies for g in groups)
    plain = sum(g.plain for g in groups)
    locking = settings.load_mode in LOCKING_MODES
    if settings.load_mode in SHARING_MODES:
        mapped = sum(
            max(g.spans[part][1] for g in groups if part in g.spans)
            - min(g.spans[part][0] for g in groups if part in g.spans)
            for part in {part for g in groups for part in g.spans}
        )
        return Part(
            device=RAM, component="model", committed=copies, file=mapped, locked=mapped if locking else 0, source=source
        )
    return Part(
        device=RAM,
        component="model",
        committed=copies + plain,
        locked=plain if locking else 0,
        transient=largest if copies or settings.devices else 0,
    )
