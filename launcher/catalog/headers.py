"""Headers of model files, and the lock file that keeps them for machines without the models. I/O: reads headers."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launcher.base.decoding import decoded
from launcher.base.regular import read_json
from launcher.catalog.declared import absurd_fields
from launcher.catalog.ggml_types import BY_NAME, GgmlType
from launcher.catalog.locate import resolve_path
from launcher.errors import CatalogError, Finding
from launcher.ir.catalog import LOCK_SCHEMA, HeaderFacts, HeaderLock, ModelFile


def header_facts(path: str, *, key: str = "") -> HeaderFacts:
    """The facts in the header of the file at `path`. Raises CatalogError with findings at `key`."""
    from launcher.catalog.files import describe, read_header  # noqa: PLC0415 - only a file at hand is read
    from launcher.catalog.projector import image_encoder, modalities, projected_widths  # noqa: PLC0415 - as above

    file = describe(path, key=key)
    base = _base_type(file)
    header = read_header(path, key=key) if file.architecture.arch == "clip" else None
    return HeaderFacts(
        file=msgspec.structs.replace(file, quantization=file.quantization or base.name.lower()),
        base_type=base.name,
        block=base.block,
        block_bytes=base.block_bytes,
        widths=projected_widths(header) if header else (),
        modalities=modalities(header) if header else (),
        encoder=image_encoder(header) if header else None,
    )


def _base_type(file: ModelFile) -> GgmlType:
    """The type that most bytes of the file have."""
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.type] += tensor.size_bytes
    name = max(sizes, key=lambda kind: sizes[kind], default="f16")
    return BY_NAME.get(name, BY_NAME["f16"])


class _Lock(msgspec.Struct):
    """A lock file whose entries were not decoded yet."""

    schema: str
    files: dict[str, msgspec.Raw]


def _is_possible(facts: HeaderFacts) -> bool:
    """Whether a file can say so: a plan walks over its layers, and divides by some of its numbers."""
    file, encoder = facts.file, facts.encoder
    sizes = [*(part.size_bytes for part in file.parts), *(tensor.size_bytes for tensor in file.tensors)]
    divides = encoder is None or encoder.merge > 0
    return bool(file.parts) and min(sizes) >= 0 and divides and not absurd_fields(file.architecture)


class Headers:
    """Reads headers, each once; what is not at hand comes from the lock file of the fleet file, if there is one."""

    def __init__(self, lock_file: Path | None = None) -> None:
        """`lock_file`: read now; one that is not there, or not readable, holds nothing."""
        self._lock_file = lock_file
        self._kept: Mapping[str, HeaderFacts] = {}
        self._used: dict[str, HeaderFacts] = {}
        self._read: dict[str, HeaderFacts] = {}
        lock = read_json(lock_file, _Lock) if lock_file is not None else None
        if lock is not None and lock.schema == LOCK_SCHEMA:  # an entry that is none costs none of the others
            entries = {name: decoded(bytes(raw), HeaderFacts) for name, raw in lock.files.items()}
            self._kept = {name: facts for name, facts in entries.items() if facts is not None and _is_possible(facts)}

    def __call__(self, path: str, key: str) -> HeaderFacts:
        """The facts of the file at `path`. Raises CatalogError at `key` when neither it nor the lock has them."""
        if path not in self._read:
            self._read[path] = self._look(path, key)
        return self._read[path]

    def absent(self) -> dict[str, HeaderFacts]:
        """Files that are not at hand, by path, as in the lock."""
        read = {resolve_path(path, ""): facts for path, facts in self._read.items()}
        return {path: facts for path, facts in read.items() if not os.path.lexists(path)}

    def lock(self) -> HeaderLock | None:
        """The new content of the lock file, if it differs from the present one."""
        if self._lock_file is None or not self._used or self._used == self._kept:
            return None
        return HeaderLock(schema=LOCK_SCHEMA, files=dict(sorted(self._used.items())))

    def _look(self, path: str, key: str) -> HeaderFacts:
        resolved, name = resolve_path(path, "", key=key), self._name(path)
        if name in self._kept and not os.path.lexists(resolved):
            facts = self._kept[name]
            self._used[name] = facts
            return msgspec.structs.replace(facts, file=_moved(facts.file, os.path.dirname(resolved)))  # noqa: PTH120
        try:
            facts = header_facts(resolved, key=key)
        except CatalogError as error:
            raise CatalogError(_with_nearest(f, resolved) for f in error.findings) from None
        self._used[name] = msgspec.structs.replace(facts, file=_moved(facts.file, ""))
        return facts

    def _name(self, path: str) -> str:
        """`path` as the lock file has it: below the fleet file's folder or the user's home, so that both may move."""
        home = str(Path.home())
        folder = str(self._lock_file.parent) if self._lock_file else ""
        if folder and path.startswith(f"{folder}/"):
            return path.removeprefix(f"{folder}/")
        return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _with_nearest(finding: Finding, path: str) -> Finding:
    """The finding about an absent file with the names of the model files that its folder does have."""
    if finding.code != "catalog/missing-file" or finding.notes:
        return finding
    folder, name = os.path.split(path)
    if "hf:" in path or "://" in path:
        note = "a file on this machine is meant: `launch add hf:ORG/REPO:QUANT` downloads one and writes its path"
        return msgspec.structs.replace(finding, notes=(note,))
    try:
        there = sorted(entry for entry in os.listdir(folder) if entry.endswith(".gguf"))  # noqa: PTH208
    except OSError as error:
        return msgspec.structs.replace(finding, notes=(f"{folder} cannot be listed: {error.strerror}",))
    near = difflib.get_close_matches(name, there, 1)
    shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    notes = (f"did you mean {os.path.join(folder, near[0])}?",) if near else ()  # noqa: PTH118
    return msgspec.structs.replace(finding, notes=(*notes, f"{folder} has {shown or 'no GGUF files'}"))


def _moved(file: ModelFile, folder: str) -> ModelFile:
    """`file` with its parts in `folder`, without this machine's inodes."""
    parts = (
        msgspec.structs.replace(p, path=os.path.join(folder, os.path.basename(p.path)), inode=None)  # noqa: PTH118, PTH119
        for p in file.parts
    )
    return msgspec.structs.replace(file, parts=tuple(parts))
