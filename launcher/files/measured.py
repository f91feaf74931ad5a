"""What was measured on this host, in files that plans read, beside the deployments' state. I/O."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import msgspec

from launcher.base.regular import read_json
from launcher.files.atomic import write_atomic, writing
from launcher.files.state import state_root
from launcher.ir.measured import Measurement, ReadSpeed

KEPT = 500
"""Measurements, the newest; one a key."""
LARGEST_RATE = 1e18
"""Bytes a second that no memory gives: what says so was not measured."""


def measured_file() -> Path:
    """Where they are kept."""
    return state_root() / "measured.json"


def read_measured() -> tuple[Measurement, ...]:
    """All of them, oldest first. None where there is no file, or one that an other version wrote."""
    return read_json(measured_file(), tuple[Measurement, ...]) or ()


def known_rates(hardware: str) -> dict[str, int]:
    """Device → bytes a second at which weights were read there while servers generated: the median, to two digits.

    Of servers that are on one device whole and draft nothing. So rounded another measurement alike changes nothing.
    """
    found: dict[str, list[float]] = {}
    for one in read_measured():
        if one.hardware == hardware and len(one.touched.bytes) == 1 and not one.drafts:
            ((device, size),) = one.touched.bytes.items()
            if 1 <= (rate := one.decode * size) < LARGEST_RATE:
                found.setdefault(device, []).append(rate)
    return {device: int(float(f"{median(rates):.2g}")) for device, rates in found.items()}


def keep_measured(new: Iterable[Measurement]) -> Path:
    """Add measurements; one of the same key takes the old one's place. Raises HostError."""
    path = measured_file()
    with writing(path, "a measurement that is not kept can be made again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            by_key = {m.key: m for m in sorted((*read_measured(), *new), key=lambda m: m.at)}
            newest = sorted(by_key.values(), key=lambda m: m.at)[-KEPT:]
            write_atomic(path, msgspec.json.format(msgspec.json.encode(newest), indent=1).decode() + "\n")
    return path


def read_speed_file() -> Path:
    """Where it is kept."""
    return state_root() / "read_speed.json"


def known_read_speed() -> ReadSpeed | None:
    """What was measured last; None where nothing was, or by an other version."""
    return read_json(read_speed_file(), ReadSpeed)


def keep_read_speed(found: ReadSpeed) -> Path:
    """Keep it in the last one's place. Raises HostError."""
    path = read_speed_file()
    with writing(path, "a measurement that is not kept can be made again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
    return path
