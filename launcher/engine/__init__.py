"""A llama-server binary → its `Dialect`: every flag, arity, choice and removal.

In: a binary (probed by its own `--help`), or the name of a recorded dialect. Out: `launcher.ir.dialect.Dialect`.
And what it says that a command line will take, from its own dry run (`prove`). `help` and `breakdown` are pure.
"""

from launcher.engine.breakdown import parse_breakdowns
from launcher.engine.devices import SeenDevice, list_devices
from launcher.engine.help import parse_help
from launcher.engine.probe import locate_binary, probe, record, recorded, recorded_names, resolve_binary
from launcher.engine.prove import (
    EMBEDDED,
    DryRunError,
    dry_run,
    keep_proof,
    proof_key,
    read_proof,
    stand_in_devices,
)

__all__ = [
    "EMBEDDED",
    "DryRunError",
    "SeenDevice",
    "dry_run",
    "keep_proof",
    "list_devices",
    "locate_binary",
    "parse_breakdowns",
    "parse_help",
    "probe",
    "proof_key",
    "read_proof",
    "record",
    "recorded",
    "recorded_names",
    "resolve_binary",
    "stand_in_devices",
]
