"""Every server field resolved to the value that llama-server will use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from launcher.cpulist import parse_cpulist
from launcher.errors import Finding, fault
from launcher.ir.architectures import traits
from launcher.ir.backends import BACKENDS
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig, CacheTypeConfig, CpuConfig, HardwareConfig, ServerConfig
from launcher.ir.plan import RAM, Settings
from launcher.plan.memory.caches import ROW
from launcher.plan.memory.layout import AUTO_SLOTS, SLOTS_MAX, resolve_context
from launcher.plan.memory.process import Companions, add_up, server_parts
from launcher.plan.memory.weights import WeightTables

NO_COMPANIONS = Companions()
NO_TYPES: Mapping[str, CacheTypeConfig] = MappingProxyType({})


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one server, and the findings of settling them."""

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
    cores = _cores(config, hardware, key, findings)
    settings = _on_cpu(config, model.architecture, cores, key, findings)
    settings = _on_devices(settings, config, hardware, key, findings)
    findings += _unknown_types(config, cache_types, key)
    settings = msgspec.structs.replace(
        settings,
        cache_blocks=tuple((name, kind.block_bytes, kind.block) for name, kind in cache_types.items()),
        build=build,
    )
    if settings.devices and hardware is not None:
        layers = _gpu_layers(config, model, hardware, settings, beside=beside, tables=tables or WeightTables())
        settings = msgspec.structs.replace(settings, n_gpu_layers=layers)
    return Settled(settings=settings, findings=tuple(findings))


def _on_cpu(config: ServerConfig, arch: ArchitectureConfig, cores: int, key: str, findings: list[Finding]) -> Settings:
    """The settings of a server without devices: slots, context, batches, caches, weights, threads."""
    slots = config.slots if config.slots is not None else AUTO_SLOTS
    if not 1 <= slots <= SLOTS_MAX:
        message = f"slots={slots}: llama-server takes 1 to {SLOTS_MAX}"
        findings.append(fault("plan/slots-range", f"{key}.slots", message))
        slots = min(max(slots, 1), SLOTS_MAX)
    unified = config.kv_unified if config.kv_unified is not None else config.slots is None
    pooling = config.pooling or arch.pooling or "none"
    embeds = not traits(arch.arch).writes or pooling != "none"
    if config.embedding is not None:
        embeds = config.embedding or pooling == "rank"
    context = resolve_context(
        n=_wanted(config, slots, arch, key, findings),
        slots=slots,
        unified=unified,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        causal=arch.causal,
        embedding=embeds,
        n_ctx_train=arch.n_ctx_train,
    )
    threads = config.threads or cores
    return Settings(
        slots=slots,
        n_ctx=context.n_ctx,
        n_ctx_seq=context.n_ctx_seq,
        n_ctx_per_slot=context.n_ctx_per_slot,
        kv_unified=unified,
        n_batch=context.n_batch,
        n_ubatch=context.n_ubatch,
        causal=arch.causal,
        embedding=embeds,
        pooling=pooling,
        flash_attention=config.flash_attention != "off",
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        swa_full=config.swa_full,
        context_checkpoints=config.context_checkpoints,
        cache_ram_mib=config.cache_ram_mib,
        load_mode=config.load_mode,
        repack=config.repack,
        n_expert_used=config.experts_used or arch.n_expert_used,
        n_cpu_moe=min(config.n_cpu_moe, arch.n_layer),
        n_cpu_ffn=min(config.n_cpu_ffn, arch.n_layer),
        kv_offload=config.kv_offload,
        split_mode=config.split_mode,
        threads=threads,
        threads_batch=config.threads_batch or threads,
        draft_n_max=config.draft.n_max if config.draft else 0,
        draft_kind=config.draft.kind if config.draft else "",
        ngram=config.ngram,
    )


def _wanted(config: ServerConfig, slots: int, arch: ArchitectureConfig, key: str, findings: list[Finding]) -> int:
    """Tokens asked for in all: n_ctx, or n_ctx_per_slot for each slot, or the training context."""
    if config.n_ctx is not None and config.n_ctx_per_slot is not None:
        message = f"both n_ctx={config.n_ctx} and n_ctx_per_slot={config.n_ctx_per_slot} are given: write one"
        findings.append(fault("plan/context-twice", f"{key}.n_ctx", message))
    if config.n_ctx_per_slot is not None:
        asked, field = config.n_ctx_per_slot * slots, "n_ctx_per_slot"
    else:
        asked, field = config.n_ctx or 0, "n_ctx"
    if asked < 0:
        findings.append(fault("plan/context-range", f"{key}.{field}", f"{field} is negative: {asked}"))
    trained = arch.n_ctx_train
    if trained and asked > trained * slots:
        message = (
            f"{asked // slots} tokens are allocated for a slot, but the model was trained with {trained}: "
            f"the server caps every slot at {trained}, the rest is never used"
        )
        key = f"{key}.{field}"
        findings.append(fault("plan/context-over-training", key, message, severity="warning"))
    return asked if asked > 0 else trained or AUTO_SLOTS * SLOTS_MAX


def _on_devices(
    settings: Settings, config: ServerConfig, hardware: HardwareConfig | None, key: str, findings: list[Finding]
) -> Settings:
    """`settings` with the server's devices, as far as the hardware has them, and what follows from them."""
    gpus = hardware.gpus if hardware else {}
    devices = tuple(device for device in config.devices if device in gpus)
    for device in (d for d in config.devices if d not in gpus):
        message = f"no GPU is named {device}; there are: {', '.join(gpus) or 'none'}"
        findings.append(fault("plan/unknown-device", f"{key}.devices", message))
    main = config.main_gpu or next(iter(devices), "")
    if config.main_gpu is not None and config.main_gpu not in devices:
        message = f"{config.main_gpu} is none of the server's devices: {', '.join(devices) or 'it has none'}"
        findings.append(fault("plan/unknown-device", f"{key}.main_gpu", message))
        main = next(iter(devices), "")
    if config.split_mode == "none" and main:
        devices = (main,)
    projector = config.projector_device
    if projector not in (None, "cpu", *gpus) and hardware is not None:
        message = f"no GPU is named {projector}; there are: {', '.join((*gpus, 'cpu'))}"
        findings.append(fault("plan/unknown-device", f"{key}.projector_device", message))
        projector = None
    shares = config.tensor_split  # as written, else by memory; llama.cpp goes by free memory
    if len(shares) != len(devices) or sum(shares) <= 0:
        shares = tuple(float(gpus[d].vram_bytes) for d in devices)
    drafting = (config.draft.devices or ()) if config.draft else ()
    used = dict.fromkeys(d for d in (*devices, *drafting, projector) if d in gpus)
    backends = {gpus[d].backend for d in devices}
    return msgspec.structs.replace(
        settings,
        devices=devices,
        main=main,
        tensor_split=tuple(share / (sum(shares) or 1.0) for share in shares),
        placement=tuple(_placement(config, devices, key, findings)),
        projector_device=RAM if projector == "cpu" else projector,
        contexts=tuple((device, gpus[device].context_bytes) for device in used),
        host_buffer=any(BACKENDS[name].has_host_buffer for name in backends),
        plain_devices=hardware is not None and backends <= {"rpc"},
        cpu_features=frozenset(hardware.cpu.features if hardware else ()),
    )


def _placement(
    config: ServerConfig, devices: tuple[str, ...], key: str, findings: list[Finding]
) -> Iterator[tuple[str, str]]:
    for position, rule in enumerate(config.tensor_placement):
        expression, equals, device = rule.rpartition("=")
        at = f"{key}.tensor_placement.{position}"
        if not equals or "," in expression or not _compiles(expression):
            message = f"{rule!r} is not of the form REGEX=DEVICE, with no comma in it"
            findings.append(fault("plan/tensor-placement", at, message))
        elif device.lower() != "cpu" and device not in devices:
            have = ", ".join((*devices, "cpu"))
            findings.append(fault("plan/unknown-device", at, f"{device} is none of the server's devices: {have}"))
        else:
            yield expression, RAM if device.lower() == "cpu" else device


def _compiles(expression: str) -> bool:
    """Whether it is a valid regular expression; llama.cpp's (ECMAScript) differ in rare forms only."""
    try:
        re.compile(expression)
    except re.error:
        return False
    return bool(expression)


def _unknown_types(config: ServerConfig, own: Mapping[str, CacheTypeConfig], key: str) -> Iterator[Finding]:
    """K/V types of the server and its draft with unknown sizes; the config stage reports them first."""
    for at, written in ((key, config), (f"{key}.draft", config.draft)):
        for field in ("cache_type_k", "cache_type_v") if written is not None else ():
            kind = getattr(written, field)
            if kind not in ROW and kind not in own:
                message = f"{kind!r} is no K/V type of llama.cpp, and the engine names none like it (cache_types)"
                yield fault("plan/dangling-reference", f"{at}.{field}", message)


def _cores(config: ServerConfig, hardware: HardwareConfig | None, key: str, findings: list[Finding]) -> int:
    """Physical cores of the server's cpuset, or of the host."""
    if hardware is None:
        return 1
    if config.cpus is None:
        return hardware.cpu.physical_cores
    try:
        cpus = parse_cpulist(config.cpus)
    except ValueError as error:
        findings.append(fault("plan/cpu-list", f"{key}.cpus", f"not a list of CPUs: {config.cpus!r} ({error})"))
        return hardware.cpu.physical_cores
    return physical_cores(cpus, hardware.cpu)


def _gpu_layers(
    config: ServerConfig,
    model: ModelFile,
    hardware: HardwareConfig,
    settings: Settings,
    *,
    beside: Companions,
    tables: WeightTables,
) -> int:
    """n_gpu_layers as a number, the output layer counted: all, as written, or the most that fits (auto)."""
    whole = model.architecture.n_layer + 1
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


def physical_cores(cpus: frozenset[int], cpu: CpuConfig) -> int:
    """Physical cores behind logical `cpus`: Linux numbers siblings one whole set of cores after the first."""
    return len({logical % max(1, cpu.physical_cores) for logical in cpus})
