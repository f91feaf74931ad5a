"""How several devices share a model, and where single tensors go. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.memory.compute_bound import PLAIN

ROWS = frozenset({"cuda", "rocm", "sycl"})
"""Backends that split matrices by rows (ggml_backend_split_buffer_type); the others take the mode for `layer`."""


def check_split_mode(planning: Planning) -> Iterator[Finding]:
    """`plan/split-mode`: modes that a build refuses or ignores, and a note that two of them were not compared."""
    for server in planning.running:
        mode, devices = server.config.split_mode, server.settings.devices
        key = f"{server.key}.split_mode"
        if mode in ("layer", "none") or len(devices) < 2:
            continue
        backends = {planning.fleet.hardware.gpus[d].backend for d in devices}
        types = {server.settings.cache_type_k, server.settings.cache_type_v}
        if mode == "tensor" and types - PLAIN:
            message = "llama-server refuses a quantised K/V cache where devices share every tensor"
            fixes = (set_field(server, "split_mode", "layer"),)
            yield finding("error", "plan/split-mode", key, message, fixes=fixes)
        elif mode == "row" and not backends <= ROWS:
            names = ", ".join(sorted(backends - ROWS))
            message = f"{names} does not split matrices by rows: layers would be divided instead"
            fixes = (set_field(server, "split_mode", "layer"),)
            yield finding("warning", "plan/split-mode", key, message, fixes=fixes)
        else:
            message = f"what each device takes under split_mode {mode} is computed, not compared with a server"
            fixes = (set_field(server, "split_mode", "layer", "whole layers, which were compared"),)
            yield finding("note", "plan/split-mode", key, message, fixes=fixes)
