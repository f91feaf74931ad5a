"""A small fleet's config directory, made anew for each test, and ways to change and compose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.config.composing import compose
from launcher.errors import ConfigError, Finding
from launcher.ir.config import Composed

MODEL = """\
title: {name}
source: made up
architecture: {{arch: llama, n_layer: 2, n_embd: 64, n_head: 4, n_head_kv: 4, n_vocab: 100, n_ctx_train: 512}}
files:
  q4_k_m: {{path: {name}-q4.gguf, bytes: 18GB}}
  q8_0: {{path: {name}-q8.gguf}}
"""
QUANTIZATION = "mix: MOSTLY\ndefault_type: q4_K\nblock: 256\nblock_bytes: 144\n"
SERVER = "model: tiny\nquantization: q4_k_m\ntier: hot\nroles: [{name}]\nslots: 2\n"

FILES = {
    "config.yaml": (
        "defaults:\n  - hardware: epyc\n  - engine: system\n  - ports: default\n  - runtime: default\n"
        "  - profile: dev\n  - _self_\n"
    ),
    "hardware/epyc.yaml": "name: epyc\nram_bytes: 500GiB\ncpu: {physical_cores: 96, logical_cores: 192}\n"
    "gpus:\n  cuda0: {backend: cuda, vram_bytes: 24GiB}\n",
    "hardware/laptop.yaml": "name: laptop\nram_bytes: 8GiB\ncpu: {physical_cores: 4, logical_cores: 8}\n",
    "engine/system.yaml": "# @package engines.default\nbinary: llama-server\ndialect: b10434\n",
    "ports/default.yaml": "frontdoor: 8080\ncoder: 8081\nembedder: 8090\n",
    "runtime/default.yaml": "front:\n  port: 8000\n",
    "tier/hot.yaml": "start: boot\n",
    "tier/warm.yaml": "# @package tiers.warm\nstart: demand\nidle_timeout_s: 300\n",
    "quantization/q4_k_m.yaml": QUANTIZATION,
    "quantization/q8_0.yaml": QUANTIZATION,
    "model/tiny.yaml": MODEL.format(name="tiny"),
    "model/draft.yaml": "# @package models.draft\n" + MODEL.format(name="draft"),
    "server/frontdoor.yaml": "# @package servers.frontdoor\n" + SERVER.format(name="frontdoor"),
    "server/coder.yaml": SERVER.format(name="coder"),
    "server/embedder.yaml": SERVER.format(name="embedder").replace("hot", "warm"),
    "profile/dev.yaml": "# @package _global_\ndefaults:\n  - /server: [frontdoor, coder]\n  - _self_\n"
    "profile:\n  name: dev\n",
    "profile/both.yaml": "# @package _global_\ndefaults:\n  - dev\n  - /server@servers.embedder: embedder\n  - _self_\n"
    "profile:\n  name: both\n",
}


class Conf:
    """A config directory on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(FILES)

    def write(self, files: Mapping[str, str | bytes]) -> Conf:
        """Write files by path; the rest stays."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self

    def compose(self, *overrides: str, dirs: Sequence[Path] | None = None, **kwargs: Any) -> Composed:
        """Compose with this directory alone, or with `dirs`."""
        return compose(overrides, config_dirs=[self.root] if dirs is None else dirs, **kwargs)

    def findings(self, *overrides: str, **kwargs: Any) -> tuple[Finding, ...]:
        """The findings that refuse the config; fails when it is accepted. Each must carry a remedy and a place."""
        with pytest.raises(ConfigError) as caught:
            self.compose(*overrides, **kwargs)
        assert caught.value.exit_code == 2
        for finding in caught.value.findings:
            assert finding.fixes or finding.notes, finding
            assert finding.location is not None, finding
        return caught.value.findings

    def finding(self, *overrides: str, **kwargs: Any) -> Finding:
        """The only finding."""
        (finding,) = self.findings(*overrides, **kwargs)
        return finding

    def where(self, finding: Finding) -> str:
        """`file:line:column`, relative to this directory."""
        return str(finding.location).removeprefix(f"{self.root}/")

    def works(self, finding: Finding, *overrides: str) -> Composed:
        """Compose with the first fix of `finding` after `overrides`; the finding must be gone."""
        composed = self.compose(*overrides, finding.fixes[0].override)
        assert finding.code not in {f.code for f in composed.findings}
        return composed


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    """The small fleet's directory."""
    return Conf(tmp_path / "conf")
