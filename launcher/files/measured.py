"""Measurements of this host, in files that plans read, beside the deployments' state. I/O."""

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

MEASUREMENTS_MAX = 500
"""Measurements that are kept at most: the newest, one per key."""
LARGEST_RATE = 1e18
"""Bytes a second that no memory gives: what says so was not measured."""


def measured_file() -> Path:
    """Path of the file with the measurements."""
    return state_root() / "measured.json"


def read_measured() -> tuple[Measurement, ...]:
    """All measurements, the oldest first; () without a file, or with one of another version."""
    return read_json(measured_file(), tuple[Measurement, ...]) or ()


def known_rates(hardware: str) -> dict[str, int]:
    """Device → bytes per second at which servers read weights there while they generate: the median, to two digits.

    From servers that are entirely on one device and use no draft. Rounded, so that a similar measurement changes
    nothing.
    """
    found: dict[str, list[float]] = {}
    for one in read_measured():
        if one.hardware == hardware and len(one.touched.bytes) == 1 and not one.drafts:
            ((device, size),) = one.touched.bytes.items()
            if 1 <= (rate := one.decode * size) < LARGEST_RATE:
                found.setdefault(device, []).append(rate)
    return {device: int(float(f"{median(rates):.2g}")) for device, rates in found.items()}


def keep_measured(new: Iterable[Measurement]) -> Path:
    """Add measurements, each in place of an older one with the same key; returns the file. Raises HostError."""
    path = measured_file()
    with writing(path, "a measurement that is not kept can be made again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            by_key = {m.key: m for m in sorted((*read_measured(), *new), key=lambda m: m.at)}
            newest = sorted(by_key.values(), key=lambda m: m.at)[-MEASUREMENTS_MAX:]
            write_atomic(path, msgspec.json.format(msgspec.json.encode(newest), indent=1).decode() + "\n")
    return path


def read_speed_file() -> Path:
    """Path of the file with the read speed of the disk."""
    return state_root() / "read_speed.json"


def known_read_speed() -> ReadSpeed | None:
    """The read speed that was measured last; None without one, or with one of another version."""
    return read_json(read_speed_file(), ReadSpeed)


def keep_read_speed(found: ReadSpeed) -> Path:
    """Store the read speed in place of the last one; returns the file. Raises HostError."""
    path = read_speed_file()
    with writing(path, "a measurement that is not kept can be made again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
    return path
