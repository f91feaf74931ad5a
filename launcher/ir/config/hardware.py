"""The `hardware` group: a machine, or several. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from launcher.ir.config.values import ByteSize, Positive, Share


class NumaNodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NUMA node: its id, its logical CPUs as a Linux list (`0-47,96-143`), its memory."""

    id: int
    cpus: str
    ram_bytes: ByteSize


class CpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's processors. `nodes` empty means one node holding everything."""

    sockets: Positive = 1
    physical_cores: Positive
    logical_cores: Positive
    model: str = ""
    features: tuple[str, ...] = ()
    """Instruction sets that change memory (`amx_int8`, `avx512f`, `avx2`): llama.cpp repacks weights for them."""
    nodes: tuple[NumaNodeConfig, ...] = ()


PROCESS_BYTES = {"cuda": 400 * 1024**2, "rocm": 400 * 1024**2}
"""VRAM of a process's context by backend, where nobody states it. From reports (nvidia-smi of idle llama.cpp and
PyTorch processes on cards from Turing to Ada: 300 to 500 MiB), not measured by this project."""


class GpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. `backend` is llama.cpp's; the device is named as the map key (`cuda0`)."""

    backend: Literal["cuda", "vulkan", "rocm", "sycl", "metal", "rpc"]
    vram_bytes: ByteSize
    memory: Literal["own", "shared"] = "own"
    """shared: it uses the host's RAM (Apple, Strix Halo, GB10, Jetson). What is on it counts in RAM, too; `vram_bytes`
    is how much of that it may take."""
    model: str = ""
    target_min: Share = 0.90
    target_max: Share = 0.95
    """Share of `vram_bytes` that a plan should use, and must not exceed."""
    endpoint: str | None = None
    """`host:port` of the ggml-rpc-server, for backend rpc."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes a second at which weights are really read there while a server generates; see `hardware`."""
    process_bytes: ByteSize | None = None
    """What each process that uses it holds of it before it loads anything (driver context, kernels). Absent: 400 MiB
    for cuda and rocm, as people report 300 to 500; nothing for others. `nvidia-smi` shows it for a tiny model."""

    @property
    def context_bytes(self) -> int:
        """`process_bytes`, or what is taken for it."""
        return self.process_bytes if self.process_bytes is not None else PROCESS_BYTES.get(self.backend, 0)


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine of several. What it does not say is as `hardware` says. Model paths are the same on all."""

    address: str
    """Where the other hosts reach it; servers placed on it listen there."""
    api_key_file: str | None = None
    """Keys that its servers ask for (`--api-key-file`); the front presents the first, from the same path there."""
    cpu: CpuConfig | None = None
    ram_bytes: ByteSize | None = None
    ram_reserve_bytes: ByteSize | None = None
    gpus: dict[str, GpuConfig] | None = None
    memlock_bytes: ByteSize | None = None


class HardwareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine a fleet is compiled for, or each of several (`hosts`). RAM budget = ram_bytes - ram_reserve_bytes."""

    name: str
    description: str = ""
    cpu: CpuConfig
    ram_bytes: Annotated[ByteSize, msgspec.Meta(ge=1)]
    ram_reserve_bytes: ByteSize = 0
    """For the system and its buffers; never planned."""
    gpus: dict[str, GpuConfig] = {}
    memlock_bytes: ByteSize | None = None
    """RLIMIT_MEMLOCK of the processes; absent means unlimited."""
    model_dir: str = "."
    """Where relative model paths start."""
    model_disk_bytes: ByteSize | None = None
    """Room for models on the disk where they lie: all quantizations that the config names of the fleet's models.
    Absent: `launch check` holds what is still to come against what is free there."""
    read_speed_bytes: ByteSize | None = None
    """Bytes a second with which models are read from there. `launch calibrate` measures it, `hardware=auto` has what it
    found. Absent: 200 MB, a hard disk, for how long a start may take; nothing is said of starts that are too short."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes a second at which weights are really read from RAM while a server generates, all its threads together: what
    a known speed gives (tokens a second, times what a token touches), not the data sheet. Without it a plan expects
    speeds where `launch calibrate` measured some."""
    hosts: dict[str, HostConfig] = {}
    """Several machines by name. Empty: one, this."""

    @property
    def pooled(self) -> frozenset[str]:
        """GPUs that use the host's RAM."""
        return frozenset(name for name, gpu in self.gpus.items() if gpu.memory == "shared")

    def whose(self, host: str, front: str) -> str:
        """The machine that an entry's `host` means: one of several, else the front's; empty where there is one."""
        return next((name for name in (host, front) if name in self.hosts), next(iter(self.hosts), ""))

    def machine(self, host: str) -> HardwareConfig:
        """The one machine `host`, with what it has of its own; of a single machine itself. KeyError: no such host."""
        if not self.hosts:
            return self
        own = msgspec.structs.asdict(self.hosts[host])
        of_machines = own.keys() & set(HardwareConfig.__struct_fields__)
        return msgspec.structs.replace(self, hosts={}, **{n: own[n] for n in of_machines if own[n] is not None})
