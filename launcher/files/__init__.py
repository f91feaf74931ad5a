"""Files on disk: atomic writes, locks with an owner, where state lives, where packaged data lies.

In: a `Deployment` value, a deployment's name. Out: files written whole or not at all, and how the disk differs
from a `Deployment`. I/O. State, measurements and checkpoints are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from launcher.files.atomic import (
    ChangedMeanwhileError,
    cannot_read,
    drop_leftovers,
    make_key_file,
    one_at_a_time,
    replace_as_read,
    write_atomic,
    writing,
)
from launcher.files.deployment import compare_deployment, owned_files, write_deployment
from launcher.files.packaged import known_codes, packaged_dir
from launcher.ir.deployment import FileDifference

if TYPE_CHECKING:
    from launcher.files.checkpoints import (
        Checkpoint,
        FileDigest,
        changed_files,
        changed_since,
        checkpoint_dir,
        checkpoint_files,
        checkpoint_names,
        cover,
        delete_checkpoint,
        file_digests,
        files_of,
        read_checkpoint,
        save_checkpoint,
    )
    from launcher.files.measured import (
        keep_measured,
        keep_read_speed,
        known_rates,
        known_read_speed,
        measured_file,
        read_measured,
    )
    from launcher.files.state import (
        LockHeldError,
        LockOwner,
        OwnedLock,
        asked_at_ns,
        call_off,
        deployment_state_dir,
        is_called_off,
        known_deployments,
        start_under_way,
        state_root,
    )

_STATE = (
    *("LockHeldError", "LockOwner", "OwnedLock", "asked_at_ns", "call_off", "deployment_state_dir", "is_called_off"),
    *("known_deployments", "start_under_way", "state_root"),
)
_MEASURED = (
    *("keep_measured", "keep_read_speed", "known_rates", "known_read_speed", "measured_file", "read_measured"),
)
_LATE = {**dict.fromkeys(_STATE, "state"), **dict.fromkeys(_MEASURED, "measured")}
"""Name → its module here; of the others all that is not imported above is of `checkpoints`."""

__all__ = [
    "ChangedMeanwhileError",
    "Checkpoint",
    "FileDifference",
    "FileDigest",
    "LockHeldError",
    "LockOwner",
    "OwnedLock",
    "asked_at_ns",
    "call_off",
    "cannot_read",
    "changed_files",
    "changed_since",
    "checkpoint_dir",
    "checkpoint_files",
    "checkpoint_names",
    "compare_deployment",
    "cover",
    "delete_checkpoint",
    "deployment_state_dir",
    "drop_leftovers",
    "file_digests",
    "files_of",
    "is_called_off",
    "keep_measured",
    "keep_read_speed",
    "known_codes",
    "known_deployments",
    "known_rates",
    "known_read_speed",
    "make_key_file",
    "measured_file",
    "one_at_a_time",
    "owned_files",
    "packaged_dir",
    "read_checkpoint",
    "read_measured",
    "replace_as_read",
    "save_checkpoint",
    "start_under_way",
    "state_root",
    "write_atomic",
    "write_deployment",
    "writing",
]


def __getattr__(name: str) -> Any:
    """What is imported on first use. AttributeError for any other name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE.get(name, 'checkpoints')}"), name)
