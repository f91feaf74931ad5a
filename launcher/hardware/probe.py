"""`hardware=auto`: this host written out as if it were a config file."""

from __future__ import annotations

from typing import Any

from launcher.ir.host import HostGpu, HostInventory
from launcher.sizes import GIB

RESERVE_SHARE = 0.10
RESERVE_MIN_BYTES = 1 * GIB


def hardware_tree(host: HostInventory) -> dict[str, Any]:
    """The `hardware` group's fragment for `host`: what a file `conf/hardware/NAME.yaml` would hold.

    The reserve for the system is a tenth of the RAM, at least 1 GiB, at most half. Several NUMA nodes are listed;
    one is not worth a line. GPUs are counted with their whole memory: what others hold now is `check`'s business.
    """
    reserve = min(max(int(host.ram_bytes * RESERVE_SHARE), RESERVE_MIN_BYTES), host.ram_bytes // 2)
    cpu: dict[str, Any] = {
        "sockets": host.sockets,
        "physical_cores": host.physical_cores,
        "logical_cores": host.logical_cores,
        "model": host.cpu_model,
        "features": list(host.features),
    }
    if len(host.nodes) > 1:
        cpu["nodes"] = [{"id": n.id, "cpus": n.cpus, "ram_bytes": n.ram_bytes} for n in host.nodes]
    tree: dict[str, Any] = {
        "name": "auto",
        "description": f"probed from {host.hostname}",
        "cpu": cpu,
        "ram_bytes": host.ram_bytes,
        "ram_reserve_bytes": reserve,
        "gpus": {g.name: _card(g) for g in host.gpus},
    }
    if host.memlock_bytes is not None:
        tree["memlock_bytes"] = host.memlock_bytes
    return tree


def _card(gpu: HostGpu) -> dict[str, Any]:
    """A card of which nobody said how full it should be."""
    return {"backend": gpu.backend, "vram_bytes": gpu.vram_bytes, "model": gpu.model, "target_min": 0.0}
