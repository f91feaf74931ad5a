"""Rendered files as values. Pure."""

from __future__ import annotations

import difflib
import hashlib
from typing import Literal

import msgspec

RECORDS: dict[Literal["system", "user"], str] = {
    "system": "/var/lib/launch/installed",
    "user": ".local/share/launch/installed",
}
"""Directories with a record NAME.json of each installed deployment: the machine's, and below a user's home."""


class RenderedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a deployment: relative POSIX path, text, mode bits."""

    path: str
    text: str
    executable: bool = False


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """Everything under `generated/<name>/`, sorted by path."""

    name: str
    input_digest: str
    files: tuple[RenderedFile, ...]


class FileDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One file that differs, and how: lines of a unified diff from the disk to what should be there.

    `extra` files were written by us earlier and are no longer part of the deployment; `mode` differs in the
    executable bit only.
    """

    path: str
    kind: Literal["changed", "missing", "extra", "mode"]
    diff: tuple[str, ...]


def content_digest(raw: bytes) -> str:
    """`sha256:` and the hex digest."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def unified(before: str, after: str, old: bytes | None, new: bytes | None) -> tuple[str, ...]:
    """Lines of a unified diff from the content `old` of file `before` to `new` of `after`; None: there is no file."""
    was, becomes = ((raw or b"").decode(errors="replace").splitlines() for raw in (old, new))
    names = ("/dev/null" if old is None else before, "/dev/null" if new is None else after)
    return tuple(difflib.unified_diff(was, becomes, *names, lineterm=""))
