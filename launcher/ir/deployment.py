"""Rendered files as values. Pure."""

from __future__ import annotations

import msgspec


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
