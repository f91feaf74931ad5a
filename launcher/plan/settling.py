"""Every server field resolved to what llama-server will make of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from launcher.cpulist import parse_cpulist
from launcher.errors import Finding
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig, CacheTypeConfig, HardwareConfig, ServerConfig
from launcher.ir.settings import RAM, Settings
from launcher.plan.cpuset import physical_cores
from launcher.plan.memory import (
    AUTO_SLOTS,
    SLOTS_MAX,
    Companions,
    WeightTables,
    add_up,
    resolve_context,
    server_parts,
)
from launcher.plan.memory.kv import ROW
from launcher.plan.memory.layer_kinds import EMBEDS_ONLY

HOST_BUFFERS = frozenset({"cuda", "rocm", "vulkan", "sycl"})
"""Backends with a host buffer type, which llama.cpp prefers to repacked CPU weights (make_cpu_buft_list)."""
NO_COMPANIONS = Companions()
NO_TYPES: Mapping[str, CacheTypeConfig] = MappingProxyType({})


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one server, and what was noticed on the way."""

    settings: Settings
    findings: tuple[Finding, ...]


def settle(
    config: ServerConfig,
    model: ModelFile,
    hardware: HardwareConfig | None = None,
    *,
    key: str = "server",
    beside: Companions = NO_COMPANIONS,
    tables: WeightTables | None = None,
    build: int = 0,
    cache_types: Mapping[str, CacheTypeConfig] = NO_TYPES,
) -> Settled:
    """Settings of `config` serving `model` on `hardware` (absent: a host without GPUs and extra instructions).

    `key` is the dotted config key of the server, for findings. `beside` and `tables` serve to fit `n_gpu_layers: auto`.
    `build`: number of the llama-server build (see `builds`). `cache_types`: K/V types that only its engine has.
    """
    findings: list[Finding] = []
    arch = model.architecture
    embeds = embedding(config, arch)
    slots = _slots(config, key, findings)
    unified = config.kv_unified if config.kv_unified is not None else config.slots is None
    wanted = _context(config, slots, model, key, findings)
    context = resolve_context(
        n=wanted,
        slots=slots,
        unified=unified,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        causal=arch.causal,
        embedding=embeds,
        n_ctx_train=arch.n_ctx_train,
    )
    if arch.n_ctx_train and wanted > arch.n_ctx_train * slots:
        findings.append(_over_training(key, config, wanted // slots, arch.n_ctx_train))
    devices = tuple(_devices(config, hardware, key, findings))
    main = _main(config, devices, key, findings)
    if config.split_mode == "none" and main:
        devices = (main,)
    findings.extend(_unknown_types(config, cache_types, key))
    own_cores = _cores(config, hardware, key, findings)
    threads = config.threads or own_cores
    settings = Settings(
        slots=slots,
        n_ctx=context.n_ctx,
        n_ctx_seq=context.n_ctx_seq,
        n_ctx_per_slot=context.n_ctx_per_slot,
        kv_unified=unified,
        n_batch=context.n_batch,
        n_ubatch=context.n_ubatch,
        causal=arch.causal,
        embedding=embeds,
        flash_attention=config.flash_attention != "off",
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        cache_blocks=tuple((name, kind.block_bytes, kind.block) for name, kind in cache_types.items()),
        swa_full=config.swa_full,
        context_checkpoints=config.context_checkpoints,
        cache_ram_mib=config.cache_ram_mib,
        load_mode=config.load_mode,
        repack=config.repack,
        n_expert_used=config.experts_used or arch.n_expert_used,
        devices=devices,
        n_gpu_layers=arch.n_layer + 1,
        n_cpu_moe=min(config.n_cpu_moe, arch.n_layer),
        tensor_split=_split(config, hardware, devices),
        kv_offload=config.kv_offload,
        split_mode=config.split_mode,
        main=main,
        n_cpu_ffn=min(config.n_cpu_ffn, arch.n_layer),
        placement=tuple(_placement(config, devices, key, findings)),
        projector_device=_projector_device(config, hardware, key, findings),
        contexts=_contexts(config, hardware, devices),
        host_buffer=hardware is not None and any(hardware.gpus[d].backend in HOST_BUFFERS for d in devices),
        plain_devices=hardware is not None and all(hardware.gpus[d].backend == "rpc" for d in devices),
        cpu_features=frozenset(hardware.cpu.features if hardware else ()),
        threads=threads,
        threads_batch=config.threads_batch or threads,
        draft_n_max=config.draft.n_max if config.draft else 0,
        draft_kind=config.draft.kind if config.draft else "",
        ngram=config.ngram,
        build=build,
        pooling=config.pooling or arch.pooling or "none",
    )
    layers = _gpu_layers(config, model, hardware, settings, beside=beside, tables=tables or WeightTables())
    return Settled(settings=msgspec.structs.replace(settings, n_gpu_layers=layers), findings=tuple(findings))


def _unknown_types(config: ServerConfig, own: Mapping[str, CacheTypeConfig], key: str) -> Iterator[Finding]:
    """K/V types of the server and its draft that nobody knows the size of; the config stage reports them first."""
    for at, written in ((key, config), (f"{key}.draft", config.draft)):
        for field in ("cache_type_k", "cache_type_v") if written is not None else ():
            kind = getattr(written, field)
            if kind not in ROW and kind not in own:
                message = f"{kind!r} is no K/V type of llama.cpp, and the engine names none like it (cache_types)"
                yield Finding(code="plan/dangling-reference", severity="error", key=f"{at}.{field}", message=message)


def embedding(config: ServerConfig, arch: ArchitectureConfig) -> bool:
    """Whether the server makes embeddings or orders texts: as written, else by its pooling and the model's kind."""
    if config.embedding is not None:
        return config.embedding or pooling(config, arch) == "rank"
    return arch.arch in EMBEDS_ONLY or pooling(config, arch) is not None


def pooling(config: ServerConfig, arch: ArchitectureConfig) -> str | None:
    """How texts become vectors, as written or as the model says; None where it is `none` or nobody says."""
    said = config.pooling or arch.pooling
    return said if said != "none" else None


def _slots(config: ServerConfig, key: str, findings: list[Finding]) -> int:
    """Slots within 1..256; absent means the server's own auto."""
    slots = config.slots if config.slots is not None else AUTO_SLOTS
    if 1 <= slots <= SLOTS_MAX:
        return slots
    findings.append(_error("plan/slots-range", f"{key}.slots", f"slots={slots}: llama-server takes 1 to {SLOTS_MAX}"))
    return min(max(slots, 1), SLOTS_MAX)


def _context(config: ServerConfig, slots: int, model: ModelFile, key: str, findings: list[Finding]) -> int:
    """Tokens asked for in all: n_ctx, or n_ctx_per_slot for each slot, or the training context."""
    if config.n_ctx is not None and config.n_ctx_per_slot is not None:
        message = f"both n_ctx={config.n_ctx} and n_ctx_per_slot={config.n_ctx_per_slot} are given: write one"
        findings.append(_error("plan/context-twice", f"{key}.n_ctx", message))
    if config.n_ctx_per_slot is not None:
        asked, field = config.n_ctx_per_slot * slots, "n_ctx_per_slot"
    else:
        asked, field = config.n_ctx or 0, "n_ctx"
    if asked < 0:
        findings.append(_error("plan/context-range", f"{key}.{field}", f"{field} is negative: {asked}"))
    trained = model.architecture.n_ctx_train or AUTO_SLOTS * SLOTS_MAX
    return asked if asked > 0 else trained


def _over_training(key: str, config: ServerConfig, n_ctx_slot: int, n_ctx_train: int) -> Finding:
    """A slot is given more context than the model was trained with."""
    field = "n_ctx_per_slot" if config.n_ctx_per_slot is not None else "n_ctx"
    return Finding(
        code="plan/context-over-training",
        severity="warning",
        key=f"{key}.{field}",
        message=(
            f"{n_ctx_slot} tokens are allocated for a slot, but the model was trained with {n_ctx_train}: "
            f"the server caps every slot at {n_ctx_train}, the rest is never used"
        ),
    )


def _devices(config: ServerConfig, hardware: HardwareConfig | None, key: str, findings: list[Finding]) -> Iterator[str]:
    """The server's devices that the hardware has."""
    known = hardware.gpus if hardware else {}
    for device in config.devices:
        if device in known:
            yield device
            continue
        have = ", ".join(known) or "none"
        findings.append(_error("plan/unknown-device", f"{key}.devices", f"no GPU is named {device}; there are: {have}"))


def _main(config: ServerConfig, devices: tuple[str, ...], key: str, findings: list[Finding]) -> str:
    """The device that has what is not split: `main_gpu`, else the first."""
    if config.main_gpu is None or config.main_gpu in devices:
        return config.main_gpu or (devices[0] if devices else "")
    message = f"{config.main_gpu} is none of the server's devices: {', '.join(devices) or 'it has none'}"
    findings.append(_error("plan/unknown-device", f"{key}.main_gpu", message))
    return devices[0] if devices else ""


def _placement(
    config: ServerConfig, devices: tuple[str, ...], key: str, findings: list[Finding]
) -> Iterator[tuple[str, str]]:
    """Each rule of `tensor_placement` as expression and device."""
    for position, rule in enumerate(config.tensor_placement):
        expression, equals, device = rule.rpartition("=")
        at = f"{key}.tensor_placement.{position}"
        if not equals or "," in expression or not _compiles(expression):
            message = f"{rule!r} is not of the form REGEX=DEVICE, with no comma in it"
            findings.append(_error("plan/tensor-placement", at, message))
        elif device.lower() != "cpu" and device not in devices:
            have = ", ".join((*devices, "cpu"))
            findings.append(_error("plan/unknown-device", at, f"{device} is none of the server's devices: {have}"))
        else:
            yield expression, RAM if device.lower() == "cpu" else device


def _compiles(expression: str) -> bool:
    """Whether it is a regular expression; llama.cpp's (ECMAScript) are written alike but for rare forms."""
    try:
        re.compile(expression)
    except re.error:
        return False
    return bool(expression)


def _projector_device(
    config: ServerConfig, hardware: HardwareConfig | None, key: str, findings: list[Finding]
) -> str | None:
    """Where the image encoder runs, if that is written."""
    device = config.projector_device
    if device is None or device == "cpu":
        return RAM if device else None
    if hardware is not None and device not in hardware.gpus:
        have = ", ".join((*hardware.gpus, "cpu"))
        findings.append(
            _error("plan/unknown-device", f"{key}.projector_device", f"no GPU is named {device}; there are: {have}")
        )
        return None
    return device


def _contexts(
    config: ServerConfig, hardware: HardwareConfig | None, devices: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    """What the process holds of its devices, the draft's too, before it loads anything."""
    if hardware is None:
        return ()
    own = [*((config.draft.devices or ()) if config.draft else ()), config.projector_device]
    used = dict.fromkeys((*devices, *(d for d in own if d is not None and d in hardware.gpus)))
    return tuple((device, hardware.gpus[device].context_bytes) for device in used)


def _split(config: ServerConfig, hardware: HardwareConfig | None, devices: tuple[str, ...]) -> tuple[float, ...]:
    """Share of the layers a device, summing to 1: as written, else by memory (llama.cpp goes by free memory)."""
    written = config.tensor_split
    if len(written) != len(devices) or sum(written) <= 0:
        written = tuple(float(hardware.gpus[d].vram_bytes) for d in devices) if hardware else ()
    total = sum(written) or 1.0
    return tuple(share / total for share in written)


def _cores(config: ServerConfig, hardware: HardwareConfig | None, key: str, findings: list[Finding]) -> int:
    """Physical cores of the server's cpuset, or of the host."""
    if hardware is None:
        return 1
    if config.cpus is None:
        return hardware.cpu.physical_cores
    try:
        cpus = parse_cpulist(config.cpus)
    except ValueError as error:
        findings.append(_error("plan/cpu-list", f"{key}.cpus", f"not a list of CPUs: {config.cpus!r} ({error})"))
        return hardware.cpu.physical_cores
    return physical_cores(cpus, hardware.cpu)


def _gpu_layers(
    config: ServerConfig,
    model: ModelFile,
    hardware: HardwareConfig | None,
    settings: Settings,
    *,
    beside: Companions,
    tables: WeightTables,
) -> int:
    """n_gpu_layers as a number, the output layer counted: all, as written, or the most that fits (auto)."""
    whole = settings.n_gpu_layers
    if not settings.devices or hardware is None:
        return 0
    if config.n_gpu_layers == "all":
        return whole
    if config.n_gpu_layers != "auto":
        return min(max(config.n_gpu_layers, 0), whole)
    budgets = {d: int(hardware.gpus[d].vram_bytes * hardware.gpus[d].target_max) for d in settings.devices}

    def fits(layers: int) -> bool:
        tried = msgspec.structs.replace(settings, n_gpu_layers=layers)
        memory = add_up(server_parts(model, tried, beside, tables))
        return all(m.peak_bytes <= budgets[m.device] for m in memory if m.device in budgets)

    if fits(whole):
        return whole
    low, high = 0, whole - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _error(code: str, key: str, message: str) -> Finding:
    """A finding that stops the plan."""
    return Finding(code=code, severity="error", key=key, message=message)
