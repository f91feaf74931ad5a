"""Paths that are none: somebody else's home, an address of another program. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.errors import Finding, fault
from launcher.ir.config import FleetConfig

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/?/", re.IGNORECASE)
_OURS = frozenset({"pkg", "built"})
_HUB = re.compile(r"(hf|huggingface):", re.IGNORECASE)


def check_paths(fleet: FleetConfig) -> Iterator[Finding]:
    """`config/path`: what begins as no path of a file does."""
    for key, path in _paths(fleet):
        scheme = _SCHEME.match(path)
        hub = _HUB.match(path)
        if path.startswith("~"):
            yield _finding(key, path, "~ is your own home, where there is one: write the whole path")
        elif hub or (scheme and scheme[1].lower() not in _OURS):
            there = "launch add hf:ORG/REPO[:QUANT] fetches a model" if hub else "fetch the file"
            yield _finding(key, path, f"{there}; a path is where the file then lies")


def _finding(key: str, path: str, note: str) -> Finding:
    message = f"{key} is {path!r}, which is no path of a file"
    return fault("config/path", key, message, note)


def _paths(fleet: FleetConfig) -> Iterator[tuple[str, str]]:
    """Every path that is opened as a file, with its key."""
    yield "hardware.model_dir", fleet.hardware.model_dir
    for name, model in fleet.models.items():
        for quantization, file in model.files.items():
            yield f"models.{name}.files.{quantization}.path", file.path
        if model.projector is not None:
            yield f"models.{name}.projector.path", model.projector.path
    for name, server in fleet.servers.items():
        for place, adapter in enumerate(server.lora):
            yield f"servers.{name}.lora.{place}.path", adapter.path
        for field in ("chat_template_file", "slot_save_path"):
            yield f"servers.{name}.{field}", getattr(server, field) or ""
