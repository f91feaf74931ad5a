"""A llama-server binary → its `Dialect`: every flag, arity, choice and removal.

In: a binary (probed by its own `--help`), or the name of a recorded dialect. Out: `launcher.ir.dialect.Dialect`.
And what it says that a command line will take, from its own dry run (`prove`). `help` and `breakdown` are pure.
"""

from launcher.engine.asking import NoAnswerError
from launcher.engine.breakdown import Proven, UnreadableError, parse_dry_run
from launcher.engine.devices import SeenDevice, list_devices
from launcher.engine.help import parse_help
from launcher.engine.identity import binary_digest, may_be_kept
from launcher.engine.probing import (
    locate_binary,
    probe,
    probe_failed,
    record,
    recorded,
    recorded_names,
    resolve_binary,
    with_cache_types,
)
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
    "UnreadableError",
    "binary_digest",
    "dry_run",
    "keep_proof",
    "lacking",
    "list_devices",
    "locate_binary",
    "may_be_kept",
    "parse_dry_run",
    "parse_help",
    "probe",
    "probe_failed",
    "proof_key",
    "read_proof",
    "record",
    "recorded",
    "recorded_names",
    "resolve_binary",
    "stand_in_devices",
    "used_features",
    "with_cache_types",
    "without_dry_run",
]
