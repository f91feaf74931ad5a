"""The config room: what was written → `FleetConfig`.

In: overrides as typed, config directories, probes. Out: `Composed` (typed config, source map, plain tree), or
`ConfigError` with every finding. I/O: lists the directories and reads the YAML files that the choice needs.

The grammar of overrides and the algorithm of defaults lists are Hydra's own code; reading files, merging and
overriding follow Hydra's semantics on plain values (`tests/config` compares the two), because OmegaConf nodes
would cost ten times as much. `composing` is the table of contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher.config.index import fleet_name, index_of, is_fleet_file
from launcher.config.located import flatten, locate
from launcher.ir.config import Composed, ServerConfig
from launcher.ir.headers import ReadHeader, SeeDevices

__all__ = ["compose", "each_run", "flatten", "fleet_name", "groups", "is_fleet_file", "locate", "server_from_fields"]

_NO_PROBES: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType({})


def compose(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path],
    virtual: Mapping[str, Callable[[], dict[str, Any]]] = _NO_PROBES,
    headers: ReadHeader | None = None,
    devices: SeeDevices | None = None,
    draft: str | None = None,
) -> Composed:
    """Compose, override, decode and cross-check the config.

    `config_dirs` are searched in order: a file of an earlier one shadows the same group and name in a later one,
    and `config.yaml` is the primary config. `virtual` maps config paths (`hardware/auto`) to functions that give
    the tree of that fragment; a function is called only when its option is chosen, and a file of the same name
    comes before it. A file among `config_dirs` is a whole fleet: a profile that is chosen. `headers` reads model files
    that stand in the place of what their headers say; raises CatalogError where it does. `devices` says what an engine
    sees of the machine's cards; `draft` is what the fleet file is taken to say. Raises ConfigError with every finding,
    each located; findings that stop nothing are in the result.
    """
    from launcher.config.composing import compose_fleet  # noqa: PLC0415 - imports Hydra: 0.2 s

    return compose_fleet(overrides, config_dirs, virtual, headers=headers, devices=devices, draft=draft)


def each_run(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Overrides with several values (Hydra's `a=1,2`, `range()`, `choice()`) as one list for each combination."""
    from launcher.config.typed import combinations  # noqa: PLC0415 - imports Hydra: 0.2 s

    return combinations(overrides)


def server_from_fields(fields: Sequence[str]) -> ServerConfig:
    """A server with these fields (`n_ctx=16384 slots=2`) and no name, model or tier. Raises ConfigError."""
    from launcher.config.composing import decode_fields  # noqa: PLC0415 - imports Hydra: 0.2 s

    return decode_fields(fields)


def groups(config_dirs: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Group → its options, both sorted; directories that cannot be read are left out. Imports no Hydra."""
    return dict(index_of(config_dirs).groups)
