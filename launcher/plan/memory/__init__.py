"""How much memory a llama-server takes.

In: a `ModelFile` (header only) and `Settings`. Out: `DeviceMemory` a device. Pure.

KV, recurrent state and output are exact; weights are exact but for page rounding; compute is a bound that no build from
b10068 to b11434 exceeded (`compute`, `compute_bound`).
One file an idea; `assemble` adds them up. Formulas name llama.cpp's file and function.
"""

from launcher.ir.plan import Part
from launcher.plan.memory.compute import not_compared
from launcher.plan.memory.layout import AUTO_SLOTS, SLOTS_MAX, is_mla, layers, pad, resolve_context, trunk
from launcher.plan.memory.process import Companions, add_up, estimate, server_parts
from launcher.plan.memory.weights import SHARING_MODES, WeightTables

__all__ = [
    "AUTO_SLOTS",
    "SHARING_MODES",
    "SLOTS_MAX",
    "Companions",
    "Part",
    "WeightTables",
    "add_up",
    "estimate",
    "is_mla",
    "layers",
    "not_compared",
    "pad",
    "resolve_context",
    "server_parts",
    "trunk",
]
