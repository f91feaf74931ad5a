"""The packaged config, composed by plain Hydra and decoded into the frozen types."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from launcher.ir.config import FleetConfig
from launcher.sizes import parse_size

CONF = Path(__file__).parents[2] / "conf"
CATALOGUE = ("model", "quantization", "tier")

Compose = Callable[..., FleetConfig]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory) -> Compose:
    """A function from overrides to the decoded fleet, with the catalogue loaded before everything else."""
    root = tmp_path_factory.mktemp("whole")
    entries = [f"  - {group}: [{', '.join(options(group))}]" for group in CATALOGUE]
    lines = ["defaults:", *entries, "  - config", "  - _self_", "hydra:", f"  searchpath: [file://{CONF}]"]
    (root / "whole.yaml").write_text("\n".join(lines) + "\n")

    @cache
    def composed(*overrides: str) -> FleetConfig:
        with initialize_config_dir(str(root), version_base="1.3"):
            tree = OmegaConf.to_container(compose("whole", list(overrides)), resolve=True)
        return msgspec.convert(_sized(tree), FleetConfig)

    return composed


def options(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _sized(node: Any, key: str = "") -> Any:
    """The tree with sizes as bytes, as the config room's decoder reads them."""
    if isinstance(node, dict):
        return {k: _sized(v, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_sized(v) for v in node]
    if isinstance(node, str) and (key == "bytes" or key.endswith("_bytes")):
        return parse_size(node)
    return node
