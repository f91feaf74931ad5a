"""NVIDIA's cards, and what processes use of them, from NVML. I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from launcher.ir.host import Card, CardUse, HostGpu

T = TypeVar("T")
DRIVER = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver is loaded."""


def cards(backend: str, _sys_root: Path) -> Iterable[Card]:
    """Every card that reports its memory, in NVML's order; a lost card still uses up its number."""

    def card(nvml: Any, index: int) -> Card | None:
        handle = _query(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        memory = _query(nvml, nvml.nvmlDeviceGetMemoryInfo, handle) if handle is not None else None
        if memory is None:
            return None
        rates = _query(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = _query(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
        return Card(
            gpu=HostGpu(
                name=f"{backend}{index}",
                backend=backend,
                model=str(_query(nvml, nvml.nvmlDeviceGetName, handle) or "a GPU"),
                vram_bytes=int(memory.total),
                free_bytes=int(memory.total) - int(memory.used),
                driver=str(_query(nvml, nvml.nvmlSystemGetDriverVersion) or ""),
            ),
            busy_percent=None if rates is None else float(rates.gpu),
            celsius=_query(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            watts=None if milliwatts is None else milliwatts / 1000,
        )

    return (found for found in _ask(card) if found is not None)


def uses(backend: str, pids: Collection[int], _sys_root: Path, _proc_root: Path) -> Iterable[CardUse]:
    """Memory that `pids` use of each card.

    A process is in the list of compute or of graphics (Vulkan) contexts, or in both with the same figure.
    """

    def sizes(nvml: Any, index: int) -> dict[int, int]:
        found: dict[int, int] = {}
        handle = _query(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in (_query(nvml, ask, handle) or ()) if handle is not None else ():
                size = int(process.usedGpuMemory or 0)  # None where the driver may not tell
                found[process.pid] = max(size, found.get(process.pid, 0))
        return found

    for index, found in enumerate(_ask(sizes)):
        yield from (CardUse(f"{backend}{index}", pid, size) for pid, size in found.items() if pid in pids)


def _ask(question: Callable[[Any, int], T]) -> tuple[T, ...]:
    """`question(pynvml, index)` for every card, in NVML's order; () without a driver, or if it does not answer."""
    if not DRIVER.exists():
        return ()
    import pynvml  # noqa: PLC0415 - 20 ms that only a host with the driver pays

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(question(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _query(nvml: Any, ask: Callable[..., Any], *words: Any) -> Any:
    """The driver's answer; None where it does not tell, or the card is lost."""
    try:
        return ask(*words)
    except nvml.NVMLError:
        return None
