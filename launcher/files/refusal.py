"""What the system refuses to write, as a finding. Pure but for the clause it guards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import Finding, HostError


@contextmanager
def writing(path: Path, *notes: str) -> Iterator[None]:
    """Turn an OSError inside into HostError `host/cannot-write` that names the file, or else `path`, and the reason.

    `notes` say what is left of it; none: that a deployment is written as a whole or not at all.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(_named(error, path), error.strerror or str(error), *notes) from error


def cannot_write(path: Path | str, reason: str, *notes: str) -> HostError:
    """The error for one `path` that cannot be written because of `reason`."""
    return HostError(
        [
            Finding(
                code="host/cannot-write",
                severity="error",
                key="",
                message=f"cannot write {path}: {reason}",
                notes=notes or ("a deployment's files are replaced only once all of them could be written",),
            )
        ]
    )


def cannot_read(path: Path | str, reason: str, *notes: str) -> Finding:
    """The finding for state that cannot be read because of `reason`."""
    message = f"{path} cannot be read: {reason}"
    return Finding(code="host/cannot-read", severity="error", key="", message=message, notes=notes)


def _named(error: OSError, path: Path) -> Path | str:
    """The file that `error` is about; of a rename its target, and never a temporary file."""
    named = [os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, str | bytes)]
    return next((name for name in named if not name.endswith(".tmp")), path)
