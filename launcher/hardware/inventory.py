"""Reads this host into a `HostInventory`, and turns that into a hardware config (`hardware=auto`)."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import psutil

from launcher.base.cgroups import cpu_quota, memory_limit
from launcher.base.procfs import read
from launcher.cpulist import format_cpulist, parse_cpulist
from launcher.hardware.cards import read_cards
from launcher.ir.host import HostInventory, HostNode
from launcher.sizes import GIB

RESERVE_SHARE = 0.10
RESERVE_MIN_BYTES = 1 * GIB
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "neon", "asimd", "i8mm", "sve")
"""CPU flags that decide which weights llama.cpp repacks."""


def take_inventory(*, sys_root: Path = Path("/sys"), proc_root: Path = Path("/proc")) -> HostInventory:
    """CPU, memory, GPUs and limits of this host now; what cannot be read keeps its default."""
    memory = psutil.virtual_memory()
    limit = memory_limit(sys_root, proc_root)
    model, flags = _cpuinfo(proc_root)
    ours = frozenset(os.sched_getaffinity(0))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    total, available = memory.total, memory.available
    if limit is not None:
        maximum, used = limit
        total, available = min(total, maximum), min(available, max(0, maximum - used))
    logical = psutil.cpu_count() or len(ours)
    return HostInventory(
        hostname=os.uname().nodename,
        cpu_model=model,
        features=tuple(f for f in FEATURES if f in flags),
        sockets=_sockets(sys_root),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        cpus=format_cpulist(ours),
        ram_bytes=total,
        available_bytes=available,
        nodes=numa_nodes(sys_root),
        gpus=tuple(card.gpu for card in read_cards(sys_root)),
        # CAP_IPC_LOCK, which root has, lifts the limit
        memlock_bytes=None if soft == resource.RLIM_INFINITY or os.geteuid() == 0 else soft,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        numactl=shutil.which("numactl"),
        cpu_quota=cpu_quota(sys_root, proc_root),
        cpu_flags=flags,
    )


def _cpuinfo(proc_root: Path) -> tuple[str, frozenset[str]]:
    text = read(proc_root / "cpuinfo") or ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return (name[1].strip() if name else ""), frozenset(flags[1].split() if flags else ())


def _sockets(sys_root: Path) -> int:
    """Number of physical packages, at least 1."""
    packages = {
        text.strip()
        for path in (sys_root / "devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
        if (text := read(path))
    }
    return max(1, len(packages))


def numa_nodes(sys_root: Path) -> tuple[HostNode, ...]:
    """NUMA nodes that have memory, by id."""
    nodes = []
    for path in (sys_root / "devices/system/node").glob("node[0-9]*"):
        info = dict(re.findall(r"(MemTotal|MemFree):\s+(\d+) kB", read(path / "meminfo") or ""))
        if int(info.get("MemTotal", 0)) == 0:
            continue
        cpus = (read(path / "cpulist") or "").strip()
        nodes.append(
            HostNode(
                id=int(path.name[4:]),
                cpus=format_cpulist(parse_cpulist(cpus)),
                ram_bytes=int(info["MemTotal"]) * 1024,
                free_bytes=int(info.get("MemFree", 0)) * 1024,
            )
        )
    return tuple(sorted(nodes, key=lambda node: node.id))


def hardware_tree(host: HostInventory) -> dict[str, Any]:
    """The `hardware` group's fragment for `host`: the contents of a file `conf/hardware/NAME.yaml`.

    The reserve for the system is a tenth of the RAM, at least 1 GiB, at most half. Several NUMA nodes are listed, a
    single one is not. GPUs count with their whole memory: `launch check` sees what others hold now.
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
        "gpus": {
            # nobody said how full a card should be
            g.name: {"backend": g.backend, "vram_bytes": g.vram_bytes, "model": g.model, "target_min": 0.0}
            for g in host.gpus
        },
    }
    if host.memlock_bytes is not None:
        tree["memlock_bytes"] = host.memlock_bytes
    return tree
