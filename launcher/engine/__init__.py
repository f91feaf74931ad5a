"""A llama-server binary → its `Dialect`: every flag, arity, choice and removal.

In: a binary (probed by its own `--help`), or the name of a recorded dialect. Out: `launcher.ir.dialect.Dialect`.
I/O in `probe` only; `help` is pure.
"""

from launcher.engine.help import parse_help
from launcher.engine.probe import locate_binary, probe, record, recorded, recorded_names, resolve_binary

__all__ = [
    "locate_binary",
    "parse_help",
    "probe",
    "record",
    "recorded",
    "recorded_names",
    "resolve_binary",
]
