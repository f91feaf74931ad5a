"""The config room: what was written → `FleetConfig`.

In: overrides as typed, config directories, probes. Out: `Composed` (typed config, source map, plain tree), or
`ConfigError` with every finding. I/O: lists the directories and reads the YAML files that the choice needs.

The grammar of overrides and the algorithm of defaults lists are Hydra's own code; reading files, merging and
overriding follow Hydra's semantics on plain values (`tests/config` compares the two), because OmegaConf nodes
would cost ten times as much. `composing` is the table of contents; whoever needs it imports it late, because Hydra
takes 0.2 s to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.config.index import fleet_name, index_of, is_fleet_file
from launcher.config.located import flatten, locate

__all__ = ["flatten", "fleet_name", "groups", "is_fleet_file", "locate"]


def groups(config_dirs: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Group → its options, both sorted; directories that cannot be read are left out. Imports no Hydra."""
    return dict(index_of(config_dirs).groups)
