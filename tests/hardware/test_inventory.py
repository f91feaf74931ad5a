"""This host, and made-up hosts, as inventories and as hardware configs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.cgroups import cpu_quota, memory_limit
from launcher.cpulist import format_cpulist, parse_cpulist
from launcher.hardware import hardware_tree
from launcher.hardware.inventory import take_inventory
from launcher.ir.config import HardwareConfig
from launcher.sizes import GIB


def test_this_host_is_measured() -> None:
    """Memory and cores agree with psutil, and the probe decodes as a hardware config that leaves a reserve."""
    host = take_inventory()
    assert 0 < host.available_bytes <= host.ram_bytes <= psutil.virtual_memory().total
    assert parse_cpulist(host.cpus)
    config = msgspec.convert(hardware_tree(host), HardwareConfig)
    assert 0 < config.ram_bytes - config.ram_reserve_bytes < host.ram_bytes


def write(root: Path, path: str, text: str) -> None:
    """A pseudo-file under a made-up root."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_two_nodes_are_listed(tmp_path: Path) -> None:
    """A two-node host gives two nodes in its hardware config, and a node without memory is left out."""
    for node, cpus in ((0, "0-3"), (1, "4-7")):
        write(tmp_path, f"devices/system/node/node{node}/cpulist", cpus + "\n")
        write(
            tmp_path,
            f"devices/system/node/node{node}/meminfo",
            f"Node {node} MemTotal: 1024 kB\nNode 0 MemFree: 512 kB\n",
        )
    write(tmp_path, "devices/system/node/node2/meminfo", "Node 2 MemTotal: 0 kB\n")
    host = take_inventory(sys_root=tmp_path)
    assert [(n.id, n.cpus, n.ram_bytes, n.free_bytes) for n in host.nodes] == [
        (0, "0-3", 1 << 20, 1 << 19),
        (1, "4-7", 1 << 20, 1 << 19),
    ]
    assert [n["id"] for n in hardware_tree(host)["cpu"]["nodes"]] == [0, 1]


@pytest.mark.parametrize(
    ("line", "folder", "limit_name", "used_name"),
    [
        ("0::/a/b", "fs/cgroup", "memory.max", "memory.current"),
        ("4:cpu,memory:/a/b", "fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_tightest_cgroup_counts(tmp_path: Path, line: str, folder: str, limit_name: str, used_name: str) -> None:
    """A limit on any ancestor bounds us, in both cgroup versions; `max` and v1's huge number are no limit."""
    write(tmp_path, "proc/self/cgroup", line + "\n")
    write(tmp_path, f"sys/{folder}/a/b/{limit_name}", "max\n" if folder == "fs/cgroup" else "9223372036854771712\n")
    write(tmp_path, f"sys/{folder}/a/{limit_name}", f"{3 * GIB}\n")
    write(tmp_path, f"sys/{folder}/a/{used_name}", f"{1 * GIB}\n")
    assert memory_limit(tmp_path / "sys", tmp_path / "proc") == (3 * GIB, 1 * GIB)


def test_no_cgroup_is_no_limit(tmp_path: Path) -> None:
    """Where nothing limits, nothing is claimed."""
    assert memory_limit(tmp_path, tmp_path) is None
    assert cpu_quota(tmp_path, tmp_path) is None


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    """Both cgroup versions; `max` and -1 are no quota, and a period of 0 is none either."""
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n4:cpu,cpuacct:/c\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "100000 0\n")
    write(tmp_path, "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path / "sys", tmp_path / "proc") is None
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "250000 100000\n")
    assert cpu_quota(tmp_path / "sys", tmp_path / "proc") == 2.5
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert take_inventory(sys_root=tmp_path / "sys", proc_root=tmp_path / "proc").cpu_quota == 1.5


@given(st.sets(st.integers(0, 300)))
def test_cpulists_round_trip(cpus: set[int]) -> None:
    """A set written as a Linux list reads back the same."""
    assert parse_cpulist(format_cpulist(cpus)) == cpus


@pytest.mark.parametrize(
    "text", ["a", "1-", "3-1", "-1", "0-99999999", " 0", "0, 1", "+1", "1_0", "٣", ",", "0-1,", "0-1,,2", "0-1-2"]
)
def test_bad_cpulists_are_refused(text: str) -> None:
    """What taskset does not read is a ValueError, whatever Python would; a silly range builds no giant set."""
    with pytest.raises(ValueError, match=r".+"):
        parse_cpulist(text)
