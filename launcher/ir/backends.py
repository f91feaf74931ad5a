"""What is known of each kind of card that llama.cpp computes on: one row a backend. Pure.

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
    """One backend; what is empty or False it does not have."""

    device: str
    """llama.cpp calls its devices this and a number from 0 (ggml_backend_dev_name)."""
    other_device: str = ""
    """What other builds call them."""
    process_bytes: int = 0
    """What a process holds of a card before it loads anything, where nobody states it. From reports (nvidia-smi of idle
    llama.cpp and PyTorch processes on cards from Turing to Ada: 300 to 500 MiB), not measured by this project."""
    has_host_buffer: bool = False
    """llama.cpp prefers its host buffer type to repacked CPU weights (make_cpu_buft_list)."""
    splits_rows: bool = False
    """It splits matrices by rows (ggml_backend_split_buffer_type); with others the server ends."""
    driver: Literal["", "nvml", "amdgpu"] = ""
    """Who tells of its cards, their memory, and what processes take of it; "": only a binary lists them."""
    in_containers: bool = True
    """A container can be given its cards: macOS passes none on, and an RPC server is asked over the network."""
    unit_devices: tuple[str, ...] = ()
    """systemd's DeviceAllow."""
    container_nodes: tuple[str, ...] = ()
    """What its drivers open: nodes of all cards, whose numbers are not llama.cpp's."""
    cdi_kind: str = ""
    """Kind of the Container Device Interface, whose names are of single cards (NVIDIA's container toolkit)."""
    visible_by: str = ""
    """The variable that shows a process only some of its cards, by number."""
    pod_resource: str = ""
    """What its vendor's device plugin calls a card (Kubernetes)."""
    gres: str = ""
    """What clusters usually call such a card (Slurm, which tells these drivers which of them are a job's)."""


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
"""By llama.cpp's name of the backend."""
