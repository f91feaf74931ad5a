"""A llama-server binary → its `Dialect`: every flag, arity, choice and removal.

In: a binary (probed by its own `--help`), or the name of a recorded dialect. Out: `launcher.ir.dialect.Dialect`. Also
the memory that a command line will take, by the binary's own dry run (`prove`). `help` and `breakdown` are pure.
Modules for dry runs are imported on first use: a plan needs none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from launcher.engine.asking import NoAnswerError, list_devices
from launcher.engine.identity import binary_digest, may_be_kept
from launcher.engine.probing import (
    locate_binary,
    probe,
    probe_failed,
    recorded,
    recorded_names,
    resolve_binary,
    with_cache_types,
)
from launcher.ir.catalog import SeenDevice

if TYPE_CHECKING:
    from launcher.engine.breakdown import Proven
    from launcher.engine.prove import (
        AS_JSON,
        EMBEDDED,
        DryRunError,
        dry_run,
        keep_proof,
        lacking,
        proof_key,
        read_proof,
        stand_in_devices,
        used_features,
        without_dry_run,
    )

__all__ = [
    "AS_JSON",
    "EMBEDDED",
    "DryRunError",
    "NoAnswerError",
    "Proven",
    "SeenDevice",
    "binary_digest",
    "dry_run",
    "keep_proof",
    "lacking",
    "list_devices",
    "locate_binary",
    "may_be_kept",
    "probe",
    "probe_failed",
    "proof_key",
    "read_proof",
    "recorded",
    "recorded_names",
    "resolve_binary",
    "stand_in_devices",
    "used_features",
    "with_cache_types",
    "without_dry_run",
]


def __getattr__(name: str) -> Any:
    """Import what a dry run needs on first use. Raises AttributeError for any other name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.prove"), name)
