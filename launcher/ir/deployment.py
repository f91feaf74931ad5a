"""Rendered files as values. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

RECORDS: dict[Literal["system", "user"], str] = {
    "system": "/var/lib/launch/installed",
    "user": ".local/share/launch/installed",
}
"""Where installed deployments are recorded, each as NAME.json: on the machine, and below a user's home."""


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
