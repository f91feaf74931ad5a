"""How much memory processes really take: shared pages divided, and GPUs by process; measured in a thread. I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from launcher.ir.fleet import FleetManifest
from launcher.supervise import procfs
from launcher.supervise.process import main_process

_NVIDIA = Path("/dev/nvidiactl")


class GpuUse(msgspec.Struct, frozen=True):
    """What the process `pid` takes on the GPU `index` (in the driver's order), in bytes."""

    index: int
    pid: int
    size_bytes: int


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process and its session: `pss_bytes` None where the kernel does not say; GPU bytes by device.

    `container_bytes`: resident in the container whose client it is.
    """

    pss_bytes: int | None = None
    container_bytes: int | None = None
    gpu_bytes: dict[str, int] = {}


class Measurer:
    """Measures processes, and keeps the last `figures` of each by pid.

    `gpus` are the fleet's GPUs, in the driver's order; `ask_gpus` is the whole interface to the driver; `pss` measures
    the RAM of one process.
    """

    def __init__(
        self,
        gpus: tuple[str, ...],
        ask_gpus: Callable[[], Iterable[GpuUse]] | None = None,
        pss: Callable[[int], int | None] | None = None,
    ) -> None:
        self.gpus = gpus
        self._ask_gpus = ask_gpus or nvml_use
        self._pss = pss or pss_bytes
        self.figures: Mapping[int, Measured] = {}

    def of(self, pid: int | None) -> Measured:
        """The last figures of `pid`."""
        return self.figures.get(pid or 0, Measured())

    def measure(self, clients: Mapping[int, tuple[str, ...]]) -> dict[int, Measured]:
        """Figures of `clients` now, by pid, each with its command: that of a container's client leads to it. Blocks."""
        stats = [stat for pid in procfs.pids() if (stat := procfs.proc_stat(pid)) is not None]
        uses = tuple(self._ask_gpus()) if self.gpus else ()
        found = {}
        for leader, argv in clients.items():
            box = _tree(main_process(argv), stats)
            pids = {stat.pid for stat in stats if stat.session == leader} | {stat.pid for stat in box}
            sizes = [size for pid in pids if (size := self._pss(pid)) is not None]
            gpu_bytes: dict[str, int] = {}
            for use in uses:
                if use.pid in pids and use.index < len(self.gpus):
                    device = self.gpus[use.index]
                    gpu_bytes[device] = gpu_bytes.get(device, 0) + use.size_bytes
            found[leader] = Measured(
                pss_bytes=sum(sizes) if sizes else None,
                container_bytes=sum(stat.rss_bytes for stat in box) if box else None,
                gpu_bytes=gpu_bytes,
            )
        return found


def _tree(root: int | None, stats: Iterable[procfs.ProcStat]) -> list[procfs.ProcStat]:
    stats = tuple(stats)
    found = [stat for stat in stats if stat.pid == root]
    for parent in found:
        found += [stat for stat in stats if stat.ppid == parent.pid]
    return found


def pss_bytes(pid: int) -> int | None:
    """Proportional set size of `pid` (`smaps_rollup`), in bytes; None when it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def nvml_use() -> tuple[GpuUse, ...]:
    """What NVML says of every process on every NVIDIA GPU; nothing where there is no driver.

    A process is in the list of compute or of graphics (Vulkan) contexts, or in both with the same figure.
    """
    if not _NVIDIA.exists():
        return ()
    import pynvml  # noqa: PLC0415 - 20 ms that only a host with the driver pays

    found: dict[tuple[int, int], int] = {}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                for ask in (
                    pynvml.nvmlDeviceGetComputeRunningProcesses,
                    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
                ):
                    for process in ask(handle):
                        size = int(process.usedGpuMemory or 0)  # None where the driver may not tell
                        found[index, process.pid] = max(size, found.get((index, process.pid), 0))
        finally:
            pynvml.nvmlShutdown()
    return tuple(GpuUse(index, pid, size) for (index, pid), size in found.items())


def gpu_names(manifest: FleetManifest) -> tuple[str, ...]:
    """Names of the fleet's GPUs, in the driver's order."""
    return tuple(device.name for device in manifest.devices if device.kind == "gpu")
