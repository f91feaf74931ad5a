"""A machine's own cards by the names that the chosen engine gives them. Pure.

The driver says `cuda0`; a Vulkan build of llama-server knows the same card as `Vulkan0`, and a CPU build not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.errors import THIS_MACHINE, Finding, fault
from launcher.ir.config import SourceMap
from launcher.ir.headers import SeeDevices

BACKENDS = {"CUDA": "cuda", "Vulkan": "vulkan", "ROCm": "rocm", "SYCL": "sycl", "MTL": "metal", "Metal": "metal"}
"""llama.cpp's device names are these with a number."""
_NAME = re.compile(rf"({'|'.join(BACKENDS)})(\d+)")


def by_engine(tree: Mapping[str, Any], sources: SourceMap, see: SeeDevices | None) -> list[Finding]:
    """Rename the cards of a probed machine in `tree` to what the default engine calls them, in place.

    Cards that somebody wrote keep their names. A warning where the engine sees none of those that are there.
    """
    hardware, engines = tree.get("hardware"), tree.get("engines")
    gpus = hardware.get("gpus") if isinstance(hardware, dict) else None
    entry = engines.get("default") if isinstance(engines, dict) else None
    written = (place for key, place in sources.locations.items() if f"{key}.".startswith("hardware.gpus."))
    if see is None or not gpus or not isinstance(gpus, dict) or not isinstance(entry, dict):
        return []
    if any(place.file != THIS_MACHINE for place in written) or tree["hardware"].get("name") != "auto":
        return []
    listed = see(entry)
    if listed is None:
        return []
    known = {seen.name: seen for seen in listed if _NAME.fullmatch(seen.name)}
    sizes = {str(gpu.get("model")): gpu.get("vram_bytes") for gpu in gpus.values()}
    tree["hardware"]["gpus"] = {
        name.lower().replace("mtl", "metal"): {
            "backend": BACKENDS[name.rstrip("0123456789")],
            "vram_bytes": sizes.get(seen.model) or seen.total_bytes,
            "model": seen.model,
            "target_min": 0.0,  # nobody said how full it should be
        }
        for name, seen in known.items()
        if sizes.get(seen.model) or seen.total_bytes
    }
    return [] if tree["hardware"]["gpus"] else [_unseen(entry, gpus)]


def _unseen(entry: Mapping[str, Any], gpus: Mapping[str, Any]) -> Finding:
    """Cards that the engine cannot use: everything goes to RAM."""
    cards = ", ".join(str(gpu.get("model") or name) for name, gpu in gpus.items())
    return fault(
        "engine/cards-unseen",
        "engines.default.binary",
        f"{entry.get('binary')} sees no card, and this machine has {cards}: models run in RAM",
        "a build for the card (CUDA, Vulkan, ROCm) would use it: engines.default.binary=/path/to/llama-server",
        "a build that has the backend may lack its driver's libraries: engines.default.library_path",
        severity="warning",
    )
