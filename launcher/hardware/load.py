"""What GPUs do now, as NVML tells it, and what RAM is free now. I/O."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from launcher.hardware.inventory import numa_nodes


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


def device_loads(sys_root: Path = Path("/sys")) -> Loads:
    """What is in use and free now."""
    nodes = tuple(NodeLoad(id=node.id, free_bytes=node.free_bytes) for node in numa_nodes(sys_root))
    return Loads(gpus=gpu_loads(), ram=RamLoad(free_bytes=psutil.virtual_memory().available), nodes=nodes)


def gpu_loads() -> tuple[GpuLoad, ...]:
    """Every NVIDIA GPU, named as in the inventory; none where there is no driver."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    import pynvml  # noqa: PLC0415 - as in the inventory

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()

    def told(ask: Callable[..., Any], *words: Any) -> Any:
        """What the driver answers, None where it does not know."""
        try:
            return ask(*words)
        except pynvml.NVMLError:
            return None

    try:
        loads = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            rates = told(pynvml.nvmlDeviceGetUtilizationRates, handle)
            milliwatts = told(pynvml.nvmlDeviceGetPowerUsage, handle)
            loads.append(
                GpuLoad(
                    name=f"cuda{index}",
                    model=str(pynvml.nvmlDeviceGetName(handle)),
                    used_bytes=int(memory.used),
                    total_bytes=int(memory.total),
                    busy_percent=None if rates is None else float(rates.gpu),
                    celsius=told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
                    watts=None if milliwatts is None else milliwatts / 1000,
                )
            )
        return tuple(loads)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
