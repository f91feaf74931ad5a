"""Files on disk: atomic writes, locks with an owner, where state lives, where packaged data lies.

In: a `Deployment` value, a deployment's name. Out: files written whole or not at all, and how the disk differs
from a `Deployment`. I/O.
"""

from __future__ import annotations

from launcher.files.atomic import drop_leftovers, write_atomic
from launcher.files.checkpoints import (
    Checkpoint,
    Covered,
    checkpoint_dir,
    checkpoint_files,
    checkpoint_names,
    delete_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from launcher.files.covered import changed_files, changed_since, cover, files_of
from launcher.files.deployment import (
    WriteReport,
    compare_deployment,
    owned_files,
    write_deployment,
)
from launcher.files.digests import FileDigest, file_digests
from launcher.files.edited import ChangedMeanwhileError, one_at_a_time, replace_as_read
from launcher.files.keys import make_key_file
from launcher.files.lock import LockHeldError, LockOwner, OwnedLock, lock_owner
from launcher.files.measured import keep_measured, known_rates, measured_file, read_measured
from launcher.files.packaged import known_codes, packaged_dir
from launcher.files.readspeed import keep_read_speed, known_read_speed
from launcher.files.refusal import cannot_read, writing
from launcher.files.starting import asked_at_ns, call_off, is_called_off, start_under_way
from launcher.files.state import deployment_state_dir, known_deployments, state_root
from launcher.ir.deployment import FileDifference

__all__ = [
    "ChangedMeanwhileError",
    "Checkpoint",
    "Covered",
    "FileDifference",
    "FileDigest",
    "LockHeldError",
    "LockOwner",
    "OwnedLock",
    "WriteReport",
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
    "lock_owner",
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
