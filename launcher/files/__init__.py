"""Files on disk: atomic writes, locks with an owner, places of state and of packaged data.

In: a `Deployment` value, a deployment's name. Out: files written whole or not at all, and how the disk differs from a
`Deployment`. I/O. State, measurements and checkpoints have modules of their own.
"""

from __future__ import annotations

from launcher.files.atomic import (
    ChangedMeanwhileError,
    cannot_read,
    drop_leftovers,
    folder_lock,
    make_key_file,
    replace_if_unchanged,
    write_atomic,
    writing,
)
from launcher.files.deployment import compare_deployment, owned_files, write_deployment
from launcher.files.packaged import known_codes, packaged_dir

__all__ = [
    "ChangedMeanwhileError",
    "cannot_read",
    "compare_deployment",
    "drop_leftovers",
    "folder_lock",
    "known_codes",
    "make_key_file",
    "owned_files",
    "packaged_dir",
    "replace_if_unchanged",
    "write_atomic",
    "write_deployment",
    "writing",
]
