"""AMD's cards, and what processes use of them, from the kernel's driver in /sys and /proc. I/O.

See the kernel's pages gpu/amdgpu/driver-misc and thermal (`mem_info_vram_*`, `gpu_busy_percent`, hwmon) and
gpu/drm-usage-stats (fdinfo). Memory allocated by ROCm is in the address space of the process's render node, so fdinfo
counts it like Vulkan's. Intel's i915 and xe write the same fdinfo keys, but no file tells how much of a card is used.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from launcher.base.procfs import read
from launcher.ir.host import Card, CardUse, HostGpu

_CARD = re.compile(r"card(\d{1,9})", re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_SIZE = re.compile(r"(\d{1,18})(?:\s+(KiB|MiB))?", re.ASCII)
_NODES = "/dev/dri/"


class Client(NamedTuple):
    """An open file of a card: the card's PCI slot, the file's id among those of the card, and its own VRAM."""

    slot: str
    id: str
    vram_bytes: int


def cards(backend: str, sys_root: Path) -> Iterable[Card]:
    """Every card whose memory can be read, by number; a card that cannot be read still uses up its number."""
    for number, (_, device) in enumerate(_devices(sys_root)):
        total, used = (_number(device / f"mem_info_vram_{what}") for what in ("total", "used"))
        if total is None or used is None:
            continue
        # reading a sensor wakes a card that sleeps (Linux 6.11 still does)
        asleep = (read(device / "power/runtime_status") or "").strip() == "suspended"
        celsius, watts = (None, None) if asleep else _sensors(device / "hwmon")
        yield Card(
            gpu=HostGpu(
                name=f"{backend}{number}",
                backend=backend,
                model=(read(device / "product_name") or "").strip() or "AMD GPU",
                vram_bytes=total,
                free_bytes=max(0, total - used),
            ),
            busy_percent=None if asleep else _number(device / "gpu_busy_percent"),
            celsius=celsius,
            watts=watts,
        )


def _sensors(folder: Path) -> tuple[float | None, float | None]:
    """Degrees Celsius and watts; a card reports either its average power or the present one."""
    hwmon = next(iter(_entries(folder)), folder)
    millidegrees, average = _number(hwmon / "temp1_input"), _number(hwmon / "power1_average")
    microwatts = _number(hwmon / "power1_input") if average is None else average
    return (
        None if millidegrees is None else millidegrees / 1000,
        None if microwatts is None else microwatts / 1_000_000,
    )


def uses(backend: str, pids: Collection[int], sys_root: Path, proc_root: Path) -> Iterable[CardUse]:
    """VRAM that `pids` use, by card and open file; a file that several of them share (a fork) counts for the first."""
    names = {slot: f"{backend}{number}" for number, (slot, _) in enumerate(_devices(sys_root))}
    seen: set[tuple[str, str]] = set()
    for pid in pids if names else ():
        for client in filter(None, map(client_of, _open_cards(proc_root / str(pid)))):
            key = client.slot, client.id
            # ROCm opens every card there is, and takes nothing of most
            if client.slot in names and client.vram_bytes and key not in seen:
                seen.add(key)
                yield CardUse(names[client.slot], pid, client.vram_bytes)


def client_of(fdinfo: str) -> Client | None:
    """The client in a file of /proc/PID/fdinfo. Pure; None where it is of another driver, or incomplete.

    `drm-memory-vram` is the older name of `drm-resident-vram`, which newer kernels write beside it; sizes without a
    unit are bytes.
    """
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in fdinfo.splitlines())}
    size = _SIZE.fullmatch(fields.get("drm-resident-vram", fields.get("drm-memory-vram", "")))
    slot, name = fields.get("drm-pdev"), fields.get("drm-client-id")
    if fields.get("drm-driver") != "amdgpu" or not slot or not name or size is None:
        return None
    return Client(slot, name, int(size[1]) * {None: 1, "KiB": 1024, "MiB": 1024**2}[size[2]])


def _open_cards(process: Path) -> Iterator[str]:
    """The fdinfo of each card that a process has open; nothing for a process that is gone, or of another user."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(process / "fd"):  # noqa: PTH208 - of every process that is measured
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(process / "fd" / entry).startswith(_NODES):  # noqa: PTH115 - no path
                    yield read(process / "fdinfo" / entry) or ""


def _devices(sys_root: Path) -> Iterator[tuple[str, Path]]:
    """PCI slot and directory of each card that amdgpu drives, in the order of their numbers."""
    if not (sys_root / "module/amdgpu").is_dir():
        return
    drawn = (_CARD.fullmatch(path.name) for path in _entries(sys_root / "class/drm"))
    for number in sorted(int(found[1]) for found in drawn if found):
        card = sys_root / f"class/drm/card{number}"
        facts = dict(line.partition("=")[::2] for line in (read(card / "device/uevent") or "").splitlines())
        if facts.get("DRIVER") == "amdgpu":
            yield facts.get("PCI_SLOT_NAME", ""), card / "device"


def _entries(folder: Path) -> list[Path]:
    """The entries of a directory; none if it does not exist or disappears meanwhile (a card that is removed)."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = (read(path) or "").strip()
    return int(text) if _DIGITS.fullmatch(text) else None
