"""How several devices share a model, and where single tensors go. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.plan.builds import NO_TENSOR_SPLIT, TENSOR_SPLIT_SEEN
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.memory.compute_bound import PLAIN

ROWS = frozenset({"cuda", "rocm", "sycl"})
"""Backends that split matrices by rows (ggml_backend_split_buffer_type); with others the server ends."""


def check_split_mode(planning: Planning) -> Iterator[Finding]:
    """`plan/split-mode`: modes that llama-server refuses, and a note that rows were not compared."""
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
            message = f"{names} cannot split matrices by rows: llama-server ends, as it does not support split buffers"
            fixes = (set_field(server, "split_mode", "layer"),)
            yield finding("error", "plan/split-mode", key, message, fixes=fixes)
        elif mode == "tensor" and server.model.architecture.arch in NO_TENSOR_SPLIT:
            known = 0 < server.settings.build <= TENSOR_SPLIT_SEEN
            arch = server.model.architecture.arch
            message = f"builds up to b{TENSOR_SPLIT_SEEN} do not share tensors of {arch} models"
            fixes = (set_field(server, "split_mode", "layer"),)
            yield finding("error" if known else "warning", "plan/split-mode", key, message, fixes=fixes)
        elif mode == "row":
            message = "what each device takes under split_mode row is computed, not compared with a server"
            fixes = (set_field(server, "split_mode", "layer", "whole layers, which were compared"),)
            yield finding("note", "plan/split-mode", key, message, fixes=fixes)
