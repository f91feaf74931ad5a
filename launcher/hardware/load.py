"""What GPUs do now, as NVML tells it, and what RAM is free now. I/O."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from launcher.hardware.inventory import ask_nvml, numa_nodes


class GpuLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU now; None where the driver does not tell."""

    name: str
    model: str
    used_bytes: int
    total_bytes: int
    busy_percent: float | None
    celsius: float | None
    watts: float | None


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node now; `free_bytes` as the kernel counts it, without what caches could give back."""

    id: int
    free_bytes: int


class RamLoad(msgspec.Struct, frozen=True, kw_only=True):
    """RAM of this machine: what could be had without swapping (MemAvailable)."""

    free_bytes: int


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    """Every device of this machine now."""

    gpus: tuple[GpuLoad, ...]
    ram: RamLoad
    nodes: tuple[NodeLoad, ...]


def device_loads() -> Loads:
    """What is in use and free now."""
    nodes = tuple(NodeLoad(id=node.id, free_bytes=node.free_bytes) for node in numa_nodes(Path("/sys")))
    return Loads(gpus=gpu_loads(), ram=RamLoad(free_bytes=psutil.virtual_memory().available), nodes=nodes)


def gpu_loads() -> tuple[GpuLoad, ...]:
    """Every NVIDIA GPU that the driver can be asked about, named as in the inventory; none where there is no driver."""
    return tuple(load for load in ask_nvml(_gpu_load) if load is not None)


def _gpu_load(nvml: Any, index: int) -> GpuLoad | None:
    """None for a GPU that is lost."""

    def told(ask: Callable[..., Any], *words: Any) -> Any:
        try:
            return ask(*words)
        except nvml.NVMLError:
            return None

    handle = told(nvml.nvmlDeviceGetHandleByIndex, index)
    memory = told(nvml.nvmlDeviceGetMemoryInfo, handle) if handle is not None else None
    if memory is None:
        return None
    rates = told(nvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = told(nvml.nvmlDeviceGetPowerUsage, handle)
    return GpuLoad(
        name=f"cuda{index}",
        model=str(told(nvml.nvmlDeviceGetName, handle) or "a GPU"),
        used_bytes=int(memory.used),
        total_bytes=int(memory.total),
        busy_percent=None if rates is None else float(rates.gpu),
        celsius=told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        watts=None if milliwatts is None else milliwatts / 1000,
    )
