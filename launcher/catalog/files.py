"""Reading model files: one GGUF or all parts of a split one, as a `ModelFile`. I/O: reads headers, never weights."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import PurePath

import msgspec

from launcher.catalog.architecture import architecture_from_headers
from launcher.catalog.gguf import BadHeader, Header, parse_header
from launcher.catalog.locate import split_paths
from launcher.catalog.mix import FILE_TYPES
from launcher.errors import CatalogError
from launcher.ir.catalog import FilePart, ModelFile

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_header(path: str, *, key: str = "") -> Header:
    """The header of the GGUF file at `path`. Raises CatalogError with one finding at `key`, never anything else."""
    return _read(path, key)[0]


def describe(path: str, *, key: str = "") -> ModelFile:
    """What a GGUF file says of itself, for `launch inspect`. Raises CatalogError with findings at `key`.

    `model` is `general.name` or the file's name, `quantization` the mix that the file names (empty when it names none).
    """
    file, header = load_model(path, model="", quantization="", key=key)
    name = header.values.get("general.name")
    model = name if isinstance(name, str) and name else PurePath(path).stem
    return msgspec.structs.replace(file, model=model, quantization=file_mix(header).lower())


def file_mix(header: Header) -> str:
    """The quantization mix that a header names (`Q4_K_M`); empty when it names none that is known."""
    number = header.values.get("general.file_type")
    return FILE_TYPES.get(number, "") if type(number) is int else ""


def load_model(path: str, *, model: str, quantization: str, key: str = "") -> tuple[ModelFile, Header]:
    """The model file at `path`, with all parts of a split one, and part 1's header.

    Raises CatalogError with findings at `key`.
    `header_digest` is the sha256 of the header; of a split model, of the parts' digests in order.
    """
    first, part = _read(path, key)
    headers, parts = [first], [part]
    try:
        for other in _other_parts(path, first):
            header, part = _read(other, key)
            headers.append(header)
            parts.append(part)
        _check_parts(headers, parts)
        architecture = architecture_from_headers(tuple(headers))
    except BadHeader as bad:
        raise _unusable(bad, path, key) from None
    joined = hashlib.sha256("".join(h.digest for h in headers).encode()).hexdigest()
    file = ModelFile(
        model=model,
        quantization=quantization,
        source="gguf",
        architecture=architecture,
        tensors=tuple(t for h in headers for t in h.tensors),
        parts=tuple(parts),
        header_digest=first.digest if len(headers) == 1 else joined,
    )
    return file, first


def _read(path: str, key: str) -> tuple[Header, FilePart]:
    try:
        with io.FileIO(path, opener=_open_without_waiting) as stream:
            found = os.fstat(stream.fileno())
            _check_regular(found.st_mode)
            header = parse_header(stream, found.st_size)
            inode, tensors = (found.st_dev, found.st_ino), len(header.tensors)
            return header, FilePart(path=path, size_bytes=found.st_size, inode=inode, tensors=tensors)
    except BadHeader as bad:
        raise _unusable(bad, path, key) from None
    except (OSError, ValueError) as error:
        raise _unusable(_unopened(path, error), path, key) from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe without a writer does not block."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_regular(mode: int) -> None:
    """Only regular files have a size to check the tensor table against."""
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise BadHeader("catalog/unreadable", f"it is {kind}, not a file")


def _unopened(path: str, error: OSError | ValueError) -> BadHeader:
    if isinstance(error, OSError) and error.errno in {errno.ENOENT, errno.ENOTDIR}:
        if os.path.islink(path):  # noqa: PTH114 - paths are strings here
            target = os.readlink(path)  # noqa: PTH115 - as above
            return BadHeader("catalog/missing-file", f"it is a link to {target!r}, which does not exist")
        return BadHeader("catalog/missing-file", "there is no such file")
    if isinstance(error, OSError) and error.errno == errno.EISDIR:
        note = "name a GGUF file in it; of a split model the first part"
        return BadHeader("catalog/unreadable", "it is a directory, not a file", note)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return BadHeader("catalog/unreadable", f"it cannot be read: {reason}")


def _unusable(bad: BadHeader, path: str, key: str) -> CatalogError:
    return CatalogError.of(bad.code, f"{path!r}: {bad.message}", *bad.notes, key=key)


def _other_parts(path: str, first: Header) -> tuple[str, ...]:
    """Paths of parts 2 to N. Raises BadHeader when one is missing, or `path` is not part 1.

    Source: llama-model-loader.cpp, constructor (`split.count`, `split.no`).
    """
    count, number = (_split_value(first, name) for name in ("split.count", "split.no"))
    if count <= 1:
        return ()
    paths = split_paths(path)
    if paths is None or len(paths) != count:
        raise BadHeader(
            "catalog/split-part-missing",
            f"it is one of {count} parts, but its name does not say so",
            f"name the parts …-00001-of-{count:05}.gguf and so on: llama.cpp finds them by name",
        )
    if number != 0 or path != paths[0]:
        raise BadHeader(
            "catalog/split-part-missing",
            f"it is part {number + 1} of {count}; llama.cpp starts at part 1",
            f"write {os.path.basename(paths[0])!r}",  # noqa: PTH119 - paths are strings here
        )
    absent = [p for p in paths[1:] if not os.path.exists(p)]  # noqa: PTH110 - as above
    if absent:
        raise BadHeader(
            "catalog/split-part-missing",
            f"{len(absent)} of its {count} parts are missing: {', '.join(map(os.path.basename, absent[:8]))}",
            "fetch the missing parts into the same folder",
        )
    return paths[1:]


def _split_value(header: Header, name: str) -> int:
    """A whole number about the split; 0 when absent or of another type."""
    value = header.values.get(name, 0)
    return value if type(value) is int and value >= 0 else 0


def _check_parts(headers: list[Header], parts: list[FilePart]) -> None:
    """The parts belong together: their numbers, their count, no tensor twice, none lost."""
    if len(headers) == 1:
        return
    count = len(headers)
    for i, (header, part) in enumerate(zip(headers, parts, strict=True)):
        stated = (_split_value(header, "split.no"), _split_value(header, "split.count"))
        if stated != (i, count):
            raise BadHeader(
                "catalog/corrupt-header",
                f"{part.path!r} says it is part {stated[0] + 1} of {stated[1]}, but its name says {i + 1} of {count}",
                "the parts are of different models, or were renamed: fetch them again",
            )
    names = [t.name for h in headers for t in h.tensors]
    total = _split_value(headers[0], "split.tensors.count")
    if len(set(names)) != len(names) or (total and total != len(names)):
        raise BadHeader(
            "catalog/corrupt-header",
            f"the {count} parts hold {len(names)} tensors, {len(set(names))} of them different; {total} were expected",
            "the parts are of different models: fetch them again",
        )
