"""Physical cores behind logical CPUs. Pure."""

from __future__ import annotations

from launcher.ir.config import CpuConfig


def physical_cores(cpus: frozenset[int], cpu: CpuConfig) -> int:
    """Physical cores behind logical `cpus`: Linux numbers siblings one whole set of cores after the first."""
    return len({logical % max(1, cpu.physical_cores) for logical in cpus})
