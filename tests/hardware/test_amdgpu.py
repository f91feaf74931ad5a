"""AMD's cards and who uses them, by trees of the real form; what is missing, closed, denied or garbage is left out."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.hardware import amdgpu, take_inventory
from launcher.hardware.amdgpu import Client, client_of
from launcher.hardware.cards import device_of, read_cards, read_uses
from launcher.ir.host import Card, CardUse, HostGpu
from launcher.sizes import GIB

SLOT, OTHER = "0000:03:00.0", "0000:83:00.0"
FDINFO = """\
pos:\t0
flags:\t02100002
mnt_id:\t24
ino:\t1204
drm-driver:\tamdgpu
drm-client-id:\t30
drm-pdev:\t0000:03:00.0
pasid:\t32785
drm-total-gtt:\t22 MiB
drm-resident-gtt:\t22 MiB
drm-total-vram:\t600000 KiB
drm-shared-vram:\t13584 KiB
drm-resident-vram:\t544428 KiB
drm-memory-vram:\t544428 KiB
drm-memory-gtt: \t22528 KiB
drm-engine-gfx:\t39456116802 ns
"""
"""As newer kernels write it: the older key beside the one that replaced it."""
OLD = """\
pos:\t0
drm-driver:\tamdgpu
drm-pdev:\t0000:03:00.0
drm-client-id:\t30
drm-memory-vram:\t2048 KiB
drm-memory-gtt: \t0 KiB
"""
"""As older kernels do."""


def card(root: Path, number: int, slot: str, driver: str = "amdgpu", **files: str) -> Path:
    """A card as sysfs has it: a link in `class/drm` to a directory below its PCI device."""
    device = root / "devices/pci0000:00" / slot
    own = device / f"drm/card{number}"
    own.mkdir(parents=True)
    (own / "device").symlink_to("../..")
    drm = root / "class/drm"
    drm.mkdir(parents=True, exist_ok=True)
    (drm / f"card{number}").symlink_to(own)
    (drm / f"card{number}-DP-1").mkdir()
    if driver == "amdgpu":
        (root / "module/amdgpu").mkdir(parents=True, exist_ok=True)
    uevent = f"DRIVER={driver}\nPCI_CLASS=38000\nPCI_ID=1002:744C\nPCI_SLOT_NAME={slot}\n"
    for name, text in {"uevent": uevent, **files}.items():
        path = device / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return device


def memory(total: int, used: int) -> dict[str, Any]:
    """Files of a card's memory, in GiB."""
    return {"mem_info_vram_total": f"{total * GIB}\n", "mem_info_vram_used": f"{used * GIB}\n"}


def process(root: Path, pid: int, **clients: str) -> None:
    """A process with open files: `_5="…"` is one of a card, with that fdinfo."""
    for folder in ("fd", "fdinfo"):
        (root / str(pid) / folder).mkdir(parents=True)
    (root / f"{pid}/fd/0").symlink_to("/dev/null")
    (root / f"{pid}/fdinfo/0").write_text(FDINFO)  # not of a card: it is not read
    for number, (name, text) in enumerate(clients.items()):
        fd = name.removeprefix("_")
        (root / f"{pid}/fd/{fd}").symlink_to(f"/dev/dri/renderD{128 + number}")
        (root / f"{pid}/fdinfo/{fd}").write_text(text)


def test_what_the_kernel_tells_of_each_card(tmp_path: Path) -> None:
    """Memory, use, temperature and power, in the order of cards' numbers; other drivers' cards are passed over."""
    sensors = {"hwmon/hwmon4/temp1_input": "61000\n", "hwmon/hwmon4/power1_average": "243700000\n"}
    more = {"product_name": "Radeon PRO W7900\n", "gpu_busy_percent": "73\n", "power/runtime_status": "active\n"}
    card(tmp_path, 10, OTHER, **memory(16, 1), **{"hwmon/hwmon5/power1_input": "9000000\n"})
    card(tmp_path, 2, SLOT, **memory(48, 3), **more, **sensors)
    card(tmp_path, 0, "0000:00:02.0", driver="i915", **memory(1, 1))
    pro = HostGpu(name="rocm0", backend="rocm", model="Radeon PRO W7900", vram_bytes=48 * GIB, free_bytes=45 * GIB)
    plain = HostGpu(name="rocm1", backend="rocm", model="AMD GPU", vram_bytes=16 * GIB, free_bytes=15 * GIB)
    assert read_cards(tmp_path) == (
        Card(gpu=pro, busy_percent=73, celsius=61, watts=243.7),
        Card(gpu=plain, watts=9),
    )
    assert take_inventory(sys_root=tmp_path, proc_root=tmp_path).gpus == (pro, plain)


def test_a_card_that_sleeps_is_left_to_sleep(tmp_path: Path) -> None:
    """Its memory is read, its sensors would wake it."""
    sensors = {"gpu_busy_percent": "0\n", "hwmon/hwmon4/temp1_input": "30000\n", "power/runtime_status": "suspended\n"}
    card(tmp_path, 0, SLOT, **memory(8, 0), **sensors)
    (found,) = read_cards(tmp_path)
    assert (found.gpu.free_bytes, found.busy_percent, found.celsius, found.watts) == (8 * GIB, None, None, None)


@pytest.mark.parametrize(
    "broken",
    [
        {"mem_info_vram_total": "", "mem_info_vram_used": "1\n"},
        {"mem_info_vram_total": "16 GiB\n", "mem_info_vram_used": "1\n"},
        {"mem_info_vram_total": f"{'9' * 5000}\n", "mem_info_vram_used": "1\n"},
        {"mem_info_vram_total": "١٦\n", "mem_info_vram_used": "1\n"},
        {"mem_info_vram_total": "17179869184\n"},
        {"mem_info_vram_total": "17179869184\n", "mem_info_vram_used/a_directory": ""},
    ],
)
def test_a_card_whose_memory_cannot_be_read_hides_no_other(tmp_path: Path, broken: dict[str, str]) -> None:
    """Nor does it give its number away: processes on the other are still found."""
    card(tmp_path / "sys", 0, OTHER, **broken)
    card(tmp_path / "sys", 1, SLOT, **memory(8, 9), gpu_busy_percent="many\n", hwmon="no directory\n")
    process(tmp_path / "proc", 7, _5=OLD)
    (found,) = read_cards(tmp_path / "sys")
    assert (found.gpu.name, found.gpu.free_bytes) == ("rocm1", 0)
    assert (found.busy_percent, found.celsius, found.watts) == (None, None, None)
    assert read_uses((7,), tmp_path / "sys", tmp_path / "proc") == (CardUse("rocm1", 7, 2 * 1024**2),)


def test_without_the_driver_nothing_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stat: neither cards nor processes are read."""
    process(tmp_path / "proc", 7, _5=FDINFO)

    def unwanted(*_: object) -> str:
        raise AssertionError

    monkeypatch.setattr(amdgpu, "read", unwanted)
    monkeypatch.setattr(Path, "iterdir", unwanted)
    assert read_cards(tmp_path / "sys") == ()
    assert read_uses((7,), tmp_path / "sys", tmp_path / "proc") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FDINFO, 544428 * 1024),
        (OLD, 2048 * 1024),
        (OLD.replace("2048 KiB", "3 MiB"), 3 * 1024**2),
        (OLD.replace("2048 KiB", "4096"), 4096),
        (OLD.replace("2048 KiB", "0"), 0),
        (OLD.replace("2048 KiB", "2 GiB"), None),
        (OLD.replace("2048 KiB", "-1 KiB"), None),
        (OLD.replace("2048 KiB", "lots"), None),
        (OLD.replace("2048 KiB", ""), None),
        (OLD.replace("2048 KiB", "9" * 5000), None),
        (OLD.replace("drm-memory-vram", "drm-memory-cpu"), None),
        (OLD.replace("amdgpu", "i915"), None),
        (OLD.replace("drm-driver", "drm-drive"), None),
        (OLD.replace("drm-client-id:\t30\n", ""), None),
        (OLD.replace("drm-pdev:\t0000:03:00.0\n", ""), None),
        ("pos:\t0\nflags:\t02\n", None),
        ("", None),
    ],
)
def test_what_fdinfo_says(text: str, expected: int | None) -> None:
    """Bytes by both names of the key and every unit; nothing of what lacks its client, its card or a size."""
    assert client_of(text) == (None if expected is None else Client(SLOT, "30", expected))


@given(st.text())
def test_any_fdinfo_can_be_read(text: str) -> None:
    """Garbage is no client."""
    assert client_of(text) is None


def test_who_uses_each_card(tmp_path: Path) -> None:
    """A client counts once, whoever has it open how often; the same number on another card is another client."""
    card(tmp_path / "sys", 1, SLOT, **memory(8, 1))
    card(tmp_path / "sys", 2, OTHER, **memory(8, 1))
    on_other = OLD.replace(SLOT, OTHER)
    second = OLD.replace("30", "31").replace("2048 KiB", "1 MiB")
    process(
        tmp_path / "proc", 7, _5=OLD, _6=OLD, _7=second, _8=on_other, _9=OLD.replace("30", "32").replace("2048", "0")
    )
    process(tmp_path / "proc", 8, _5=OLD)  # a fork of it
    process(
        tmp_path / "proc", 9, _5=OLD.replace(SLOT, "0000:ff:00.0").replace("30", "1")
    )  # a card that is none of ours
    process(tmp_path / "proc", 10, _5=OLD.replace("30", "44"))  # nobody asked
    found = read_uses((7, 8, 9), tmp_path / "sys", tmp_path / "proc")
    size = 1024**2
    assert sorted(found) == [CardUse("rocm0", 7, size), CardUse("rocm0", 7, 2 * size), CardUse("rocm1", 7, 2 * size)]


def test_a_process_that_goes_meanwhile_or_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be looked at is left out, the rest is counted: a file just closed, a process gone or another's."""
    card(tmp_path / "sys", 1, SLOT, **memory(8, 1))
    process(tmp_path / "proc", 7, _3=OLD.replace("30", "1"), _4=OLD, _5=OLD.replace("30", "2"))
    (tmp_path / "proc/7/fdinfo/3").unlink()  # closed between the link and its fdinfo
    process(tmp_path / "proc", 8, _5=OLD)
    (tmp_path / "proc/9").write_text("not even a directory")
    really_list, really_read = os.listdir, os.readlink

    def listed(path: Path) -> Collection[str]:
        if path.parts[-2:] == ("8", "fd"):
            raise PermissionError(13, "Permission denied")
        return [*really_list(path), "99"]  # one that is closed before its link is read

    def link(path: Path) -> str:
        if path.name == "5":
            raise PermissionError(13, "Permission denied")
        return really_read(path)

    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os, "readlink", link)
    found = read_uses((7, 8, 9, 10), tmp_path / "sys", tmp_path / "proc")
    assert found == (CardUse("rocm0", 7, 2 * 1024**2),)


@pytest.mark.parametrize(
    ("card_name", "gpus", "expected"),
    [
        ("cuda0", ("cuda0", "rocm0"), "cuda0"),
        ("rocm0", ("cuda0", "rocm0"), "rocm0"),
        ("cuda1", ("cuda1",), "cuda1"),
        ("cuda0", ("cuda1",), None),  # its place in the fleet is that of another card
        ("rocm0", ("vulkan0",), "vulkan0"),
        ("cuda1", ("big", "small"), "small"),
        ("cuda2", ("big", "small"), None),
        ("rocm0", ("cuda0", "vulkan1"), None),
        ("rocm1", ("cuda0", "vulkan1"), "vulkan1"),
        ("cuda0", ("cuda",), "cuda"),
        ("cuda0", (), None),
    ],
)
def test_what_a_fleet_calls_a_card(card_name: str, gpus: tuple[str, ...], expected: str | None) -> None:
    """A driver's name is that card and no other; another name is the card of its place."""
    assert device_of(card_name, gpus) == expected
