"""Server fields given one by one, as `launch inspect` takes them. Pure; imports Hydra for the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.config.cachetypes import cache_types
from launcher.config.decode import decode_struct
from launcher.config.located import shortened
from launcher.config.typed import parse_overrides
from launcher.errors import ConfigError, Finding
from launcher.ir.config import ServerConfig


def decode_fields(fields: Sequence[str]) -> ServerConfig:
    """`fields` in the override grammar, without signs, as a ServerConfig. Raises ConfigError with every finding."""
    typed, findings = parse_overrides(fields)
    tree: dict[str, Any] = {"model": "", "quantization": "", "tier": ""}
    places = {}
    for override in typed:
        tree[override.key] = override.value
        places[override.key] = override.location
    server, problems = decode_struct(ServerConfig, tree)
    for problem in cache_types("server", server, ()):
        problems.append(msgspec.structs.replace(problem, key=problem.key.removeprefix("server."), fixes=()))
    findings += [_placed(problem, places) for problem in problems]
    if findings:
        raise ConfigError(shortened(findings))
    return server


def _placed(finding: Finding, places: dict[str, Any]) -> Finding:
    """The finding at the field that it is about."""
    return msgspec.structs.replace(finding, location=places.get(finding.key.partition(".")[0]))
