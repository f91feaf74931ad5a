"""Linux CPU lists and the physical cores behind them. Pure."""

from __future__ import annotations

from launcher.ir.config import CpuConfig


def parse_cpus(text: str) -> frozenset[int]:
    """Logical CPUs of a Linux list (`0-47,96-143`). Raises ValueError when it is not one."""
    cpus: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        start, end = int(first), int(last if dash else first)
        if end < start:
            raise ValueError(f"{item} runs backwards")
        cpus.update(range(start, end + 1))
    return frozenset(cpus)


def physical_cores(cpus: frozenset[int], cpu: CpuConfig) -> int:
    """Physical cores behind logical `cpus`: Linux numbers siblings one whole set of cores after the first."""
    return len({logical % max(1, cpu.physical_cores) for logical in cpus})
