"""Expected speed: a token takes the time of reading the bytes it touches, at the device's read rate. Pure.

A token touches the weights of its experts and of everything else, half the K/V of a full slot, and the recurrent state.
Drafts make a server faster by the accepted share, which is known only where that server was measured. Processes that
read a device, or a NUMA node, at the same time share its rate: each of n has an n-th.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import msgspec

from launcher.ir.architectures import trunk
from launcher.ir.catalog import ModelFile
from launcher.ir.config import HardwareConfig
from launcher.ir.measured import Measurement, ServerSpeed, Touched
from launcher.ir.plan import RAM, DeviceMemory, FleetPlan, ServerPlan, Settings
from launcher.plan.memory.layout import split_name
from launcher.plan.memory.weights import INPUT, is_bank

SPREAD = 0.25
"""How far another model's rate may differ from the one that was measured, either way (docs/performance.md)."""


def speeds(plan: FleetPlan, known: Iterable[Measurement], keys: dict[str, str]) -> tuple[ServerSpeed, ...]:
    """Expected speeds of the servers that generate text, where anything is known.

    `known`: measurements on this hardware. `keys`: server → the keys of its measurements.
    """
    measured = tuple(m for m in known if m.hardware == plan.config.hardware.name)
    found: list[ServerSpeed] = []
    if not measured and not states_rates(plan.config.hardware):
        return ()
    generating = [(s, touched(s)) for s in plan.servers if not s.settings.embedding]
    readers = Counter(place for s, touches in generating if s.initial for place in _places(plan, s, touches))
    for server, touches in generating:
        machine = plan.config.hardware.machine(server.on)
        speed = expected(server, touches, machine, measured, keys.get(server.name, ""))
        if speed is not None:
            at_once = [readers[place] + (not server.initial) for place in _places(plan, server, touches)]
            load_s = speed.load_s if speed.load_s is not None else server.load_s
            together = _shared(speed.decode, at_once)
            found.append(msgspec.structs.replace(speed, together=together, load_s=load_s))
    return tuple(found)


def _places(plan: FleetPlan, server: ServerPlan, touches: Touched) -> Iterator[tuple[str, str]]:
    """Where it reads from: host, and device or NUMA node (each socket has memory channels of its own)."""
    every = [node.id for node in plan.config.hardware.machine(server.on).cpu.nodes]
    bound = server.config.numa.nodes if server.config.numa and server.config.numa.policy != "interleave" else ()
    for device in touches.bytes:
        if device == RAM and every:
            yield from ((server.on, f"node {node}") for node in every if not bound or node in bound)
        else:
            yield server.on, device


def _shared(decode: tuple[float, float], at_once: Sequence[int]) -> tuple[float, float] | None:
    """`decode` where several read the same places: from the fullest place's share to the emptiest's."""
    if max(at_once, default=1) < 2:
        return None
    return decode[0] / max(at_once), decode[1] / max(1, min(at_once))


def expected(
    server: ServerPlan, touches: Touched, hardware: HardwareConfig, measured: Iterable[Measurement], key: str
) -> ServerSpeed | None:
    """By the server's own measurement, else by other models', else by the hardware file; None: nothing is known."""
    known = tuple(measured)
    own = max((m for m in known if m.key == key), key=lambda m: m.at, default=None)
    if own is not None:
        quiet = f"load {own.load_average:.1f}"
        return ServerSpeed(
            server=server.name,
            decode=(own.decode, own.decode),
            prompt=(own.prompt, own.prompt),
            source="measured",
            basis=f"{own.at[:10]}, {own.build}, {own.prompt_tokens}+{own.n_predict} tokens, {quiet}",
            touched_bytes=touches.bytes,
            load_s=own.load_s or None,
        )
    single = set(touches.bytes) if len(touches.bytes) == 1 else None
    alike = [m for m in known if set(m.touched.bytes) == single and not m.drafts]
    alike = [m for m in alike if m.quantization == server.config.quantization] or alike
    if alike:
        return _calibrated(server, touches, alike)
    seconds = token_seconds(touches, hardware)
    if not seconds:
        return None
    return ServerSpeed(
        server=server.name,
        decode=((1 - SPREAD) / seconds, (1 + SPREAD) / seconds),
        source="stated",
        basis="read_bandwidth_bytes of " + ", ".join(touches.bytes),
        touched_bytes=touches.bytes,
    )


def _calibrated(server: ServerPlan, touches: Touched, alike: list[Measurement]) -> ServerSpeed:
    """By the read rates of other models in the same place, which is one device."""
    (device,) = touches.bytes
    rates = [m.decode * m.touched.bytes[device] for m in alike]
    work = [m.prompt * m.touched.weights for m in alike]
    size, weights = touches.bytes[device], touches.weights
    return ServerSpeed(
        server=server.name,
        decode=((1 - SPREAD) * min(rates) / size, (1 + SPREAD) * max(rates) / size),
        prompt=((1 - SPREAD) * min(work) / weights, (1 + SPREAD) * max(work) / weights) if weights else None,
        source="calibrated",
        basis=f"measured here: {', '.join(sorted({f'{m.model} {m.quantization}' for m in alike}))}",
        touched_bytes=touches.bytes,
    )


def token_seconds(touches: Touched, hardware: HardwareConfig) -> float | None:
    """Seconds per token by the rates in the hardware file; None where one is missing."""
    rates = {device: rate for device in touches.bytes if (rate := _stated(hardware, device))}
    if not rates or len(rates) < len(touches.bytes):
        return None
    return sum(size / rates[device] for device, size in touches.bytes.items())


def states_rates(hardware: HardwareConfig) -> bool:
    """Whether the hardware file states any rate."""
    of_hosts = (host.gpus or {} for host in hardware.hosts.values())
    gpus = (gpu for found in (hardware.gpus, *of_hosts) for gpu in found.values())
    return bool(hardware.read_bandwidth_bytes or any(gpu.read_bandwidth_bytes for gpu in gpus))


def _stated(hardware: HardwareConfig, device: str) -> int | None:
    """Bytes per second that the hardware file states."""
    if device == RAM:
        return hardware.read_bandwidth_bytes
    gpu = hardware.gpus.get(device)
    return gpu.read_bandwidth_bytes if gpu else None


def touched(server: ServerPlan) -> Touched:
    """Bytes touched per token of `server`, per device, as its layers are placed."""
    return touched_by(server.model, server.settings, server.memory)


def touched_by(model: ModelFile, settings: Settings, placed: Sequence[DeviceMemory]) -> Touched:
    """Bytes touched per token of a model, per device. `placed`: its bytes there."""
    arch = model.architecture
    share = settings.n_expert_used / arch.n_expert if arch.n_expert else 1.0
    tied = not any(t.name == "output.weight" for t in model.tensors)
    rules = [(re.compile(pattern), device) for pattern, device in settings.placement]
    layers = trunk(arch)
    first = max(0, arch.n_layer + 1 - settings.n_gpu_layers) if settings.devices else arch.n_layer + 1
    sizes: defaultdict[str, float] = defaultdict(float)
    weights = 0.0
    for tensor in model.tensors:
        layer, stem = split_name(tensor.name)
        if layer >= layers or (stem.startswith(INPUT) and not (tied and stem.startswith("token_embd"))):
            continue
        bank = is_bank(stem)
        part = share if bank else 1.0
        on_gpu = (layer if layer >= 0 else arch.n_layer) >= first
        kept = (bank and layer < settings.n_cpu_moe) or (stem.startswith("ffn_") and 0 <= layer < settings.n_cpu_ffn)
        ruled = next((device for pattern, device in rules if pattern.search(tensor.name)), None)
        place = ruled or ("gpu" if on_gpu and not kept else RAM)
        sizes[place] += tensor.size_bytes * part
        weights += prod(tensor.shape) * part if layer >= 0 else 0
    _spread(sizes, settings, placed)
    for memory in placed:
        state = memory.kv_bytes / 2 + memory.recurrent_bytes
        if state:
            sizes[memory.device] += state / settings.slots
    return Touched(
        bytes={device: round(size) for device, size in sorted(sizes.items()) if size}, weights=round(weights)
    )


def _spread(sizes: defaultdict[str, float], settings: Settings, placed: Sequence[DeviceMemory]) -> None:
    together = sizes.pop("gpu", 0.0)
    shares = {m.device: m.model_bytes for m in placed if m.device in settings.devices and m.model_bytes}
    for device, share in shares.items():
        sizes[device] += together * share / sum(shares.values())
