"""The facts of each kind of card that llama.cpp computes on: one row per backend. Pure.

A new vendor is a row here and its name in `BackendName`. Where its driver can be asked about cards and memory, a module
of `launcher/hardware` does that, and `DRIVERS` in `launcher/hardware/cards` names it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import msgspec

BackendName = Literal["cuda", "vulkan", "rocm", "sycl", "metal", "rpc"]
_NVIDIA = ("char-nvidia", "char-nvidia-uvm", "char-nvidia-caps")


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One backend; an empty or False field means that it has no such thing."""

    device: str
    """llama.cpp's name of its devices, before a number from 0 (ggml_backend_dev_name)."""
    other_device: str = ""
    """The name of its devices in other builds."""
    process_bytes: int = 0
    """Bytes of a card that a process takes before it loads anything, where the config does not say. From reports
    (nvidia-smi of idle llama.cpp and PyTorch processes on cards from Turing to Ada: 300 to 500 MiB), not measured by
    this project."""
    has_host_buffer: bool = False
    """llama.cpp prefers its host buffer type to repacked CPU weights (make_cpu_buft_list)."""
    splits_rows: bool = False
    """Whether it can split matrices by rows (ggml_backend_split_buffer_type); with others the server exits."""
    driver: Literal["", "nvml", "amdgpu"] = ""
    """The driver module that reports its cards, their memory and its use by processes; "": only a llama-server lists
    them."""
    in_containers: bool = True
    """Whether a container can be given its cards: macOS passes none on, and an RPC server is reached over the
    network."""
    unit_devices: tuple[str, ...] = ()
    """For systemd's DeviceAllow."""
    container_nodes: tuple[str, ...] = ()
    """Device nodes that its drivers open: those of all cards, whose numbers are not llama.cpp's."""
    cdi_kind: str = ""
    """Kind in the Container Device Interface, which names single cards (NVIDIA's container toolkit)."""
    visible_by: str = ""
    """The environment variable that limits a process to some of its cards, by number."""
    pod_resource: str = ""
    """Resource name of a card in the vendor's Kubernetes device plugin."""
    gres: str = ""
    """Usual name of such a card in Slurm, which tells these drivers the cards of each job."""


_PROCESS_BYTES = 400 * 1024**2
BACKENDS: MappingProxyType[str, Backend] = MappingProxyType(
    {
        "cuda": Backend(
            device="CUDA",
            process_bytes=_PROCESS_BYTES,
            has_host_buffer=True,
            splits_rows=True,
            driver="nvml",
            unit_devices=_NVIDIA,
            cdi_kind="nvidia.com/gpu",
            pod_resource="nvidia.com/gpu",
            gres="gpu",
        ),
        "vulkan": Backend(
            device="Vulkan",
            has_host_buffer=True,
            unit_devices=(*_NVIDIA, "char-drm"),
            container_nodes=("/dev/dri",),
        ),
        "rocm": Backend(
            device="ROCm",
            process_bytes=_PROCESS_BYTES,
            has_host_buffer=True,
            splits_rows=True,
            driver="amdgpu",
            unit_devices=("char-drm", "/dev/kfd"),
            container_nodes=("/dev/kfd", "/dev/dri"),
            visible_by="ROCR_VISIBLE_DEVICES",
            pod_resource="amd.com/gpu",
            gres="gpu",
        ),
        "sycl": Backend(
            device="SYCL",
            has_host_buffer=True,
            splits_rows=True,
            unit_devices=("char-drm",),
            container_nodes=("/dev/dri",),
            visible_by="ZE_AFFINITY_MASK",
            pod_resource="gpu.intel.com/xe",
            gres="gpu",
        ),
        "metal": Backend(device="Metal", other_device="MTL", in_containers=False),
        "rpc": Backend(device="RPC", in_containers=False),
    }
)
"""Keyed by llama.cpp's name of the backend."""
