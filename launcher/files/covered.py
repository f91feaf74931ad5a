"""Which files a fleet is run with, and which of them are no longer what they were. I/O."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.errors import Finding
from launcher.files.checkpoints import Covered, CoveredKind
from launcher.files.digests import FileDigest
from launcher.ir.fleet import FleetManifest

_SECRET_FLAGS = frozenset({"--api-key-file", "--ssl-key-file"})
_LIBRARY = re.compile(r"lib(llama|ggml|mtmd)[\w.+-]*\.so[\w.]*")
_ELF = b"\x7fELF"


def files_of(manifest: FleetManifest) -> dict[str, tuple[CoveredKind, tuple[str, ...]]]:
    """Path → what it is and for whom: model files, programs, llama.cpp's libraries, and files that argv names.

    Servers that are never started need none. Key files are left out: a digest of a short secret gives it away.
    """
    found: dict[str, tuple[CoveredKind, list[str]]] = {}
    for server in (server for server in manifest.servers if server.start != "never"):
        ways = [(server.files, server.argv), *((rung.files, rung.argv) for rung in server.rungs)]
        for files, argv in ways:
            models: list[tuple[str, CoveredKind]] = [(path, "model") for path in files]
            for path, kind in (*models, *_of_words(argv, server.env)):
                found.setdefault(path, (kind, []))[1].append(server.name)
    for service in manifest.services:
        for path, kind in _of_words(service.argv, service.env):
            found.setdefault(path, (kind, []))[1].append(service.name)
    return {path: (kind, tuple(dict.fromkeys(names))) for path, (kind, names) in found.items()}


def cover(
    manifest: FleetManifest, digests: Mapping[str, FileDigest]
) -> tuple[tuple[Covered, ...], tuple[Finding, ...]]:
    """Every file of `manifest` with its digest; a finding for each that cannot be read."""
    covered, findings = [], []
    for path, (kind, servers) in sorted(files_of(manifest).items()):
        found = digests[path]
        if found.error:
            findings.append(_missing(path, kind, servers, found.error))
            continue
        covered.append(Covered(path=path, kind=kind, size_bytes=found.size_bytes, digest=found.digest, servers=servers))
    return tuple(covered), tuple(findings)


def changed_files(covered: tuple[Covered, ...], digests: Mapping[str, FileDigest]) -> tuple[Finding, ...]:
    """One error for each file that is missing or is not what it was."""
    findings = []
    for was in covered:
        now = digests[was.path]
        if now.error:
            findings.append(_missing(was.path, was.kind, was.servers, now.error))
        elif now.digest != was.digest:
            findings.append(
                Finding(
                    code="checkpoint/digest-differs",
                    severity="error",
                    key=f"servers.{was.servers[0]}",
                    message=f"{was.path}, {was.kind} of {', '.join(was.servers)}, is not the file of the checkpoint",
                    notes=(
                        f"recorded: {was.digest}, {was.size_bytes} bytes",
                        f"found:    {now.digest}, {now.size_bytes} bytes",
                        "put the file of then back, or make the fleet of now with `launch up`",
                    ),
                )
            )
    return tuple(findings)


def changed_since(path: str, moment: float) -> bool:
    """Whether the file was written or replaced after `moment` (Unix time)."""
    try:
        found = Path(path).stat()
    except OSError:
        return False
    return max(found.st_mtime, found.st_ctime) > moment


def _of_words(argv: tuple[str, ...], env: Mapping[str, str]) -> Iterator[tuple[str, CoveredKind]]:
    """Files that a command line names: its program, those among its words, and llama.cpp's libraries for them."""
    folders = {folder for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder}
    for position, word in enumerate(argv):
        path = (shutil.which(word) or "") if position == 0 else word
        if not os.path.isabs(path) or not os.path.isfile(path):  # noqa: PTH117, PTH113 - words, most are no paths
            continue
        if position > 0 and argv[position - 1] in _SECRET_FLAGS:
            continue
        if os.access(path, os.X_OK):
            yield path, "binary"
            if _is_elf(path):
                folders.add(os.path.dirname(os.path.realpath(path)))  # noqa: PTH120 - as above
        else:
            yield path, "file"
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):  # noqa: PTH208, PTH112 - as above
            if _LIBRARY.fullmatch(name):
                yield os.path.join(folder, name), "library"  # noqa: PTH118 - as above


def _is_elf(path: str) -> bool:
    """Whether it is a program of the machine."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == _ELF
    except OSError:
        return False


def _missing(path: str, kind: CoveredKind, servers: tuple[str, ...], why: str) -> Finding:
    """For a file that cannot be read."""
    return Finding(
        code="checkpoint/file-missing",
        severity="error",
        key=f"servers.{servers[0]}",
        message=f"{path}, {kind} of {', '.join(servers)}, cannot be read: {why}",
        notes=("put the file back where it was",),
    )
