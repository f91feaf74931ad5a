"""The host as it is: CPUs, memory, GPUs, limits, ports. I/O.

In: this machine (/proc, /sys, psutil, NVML, rlimits). Out: `HostInventory`; a hardware config of this machine
(`hardware=auto`); findings about a manifest that this host cannot run now; the present load of the cards, and their
users (`cards`).
"""

from launcher.hardware.checks import check_host, describe_checks
from launcher.hardware.facts import HostFacts, gather_facts, missing_models
from launcher.hardware.inventory import hardware_tree, take_inventory

__all__ = [
    "HostFacts",
    "check_host",
    "describe_checks",
    "gather_facts",
    "hardware_tree",
    "missing_models",
    "take_inventory",
]
