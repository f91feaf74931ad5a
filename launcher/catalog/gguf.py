"""A GGUF header, read without numpy and without the weights.

In: a binary stream at its start and the file's size. Out: `Header`, or `BadHeader`. Reads the stream, nothing else.
Format: llama.cpp ggml/src/gguf.cpp (`gguf_init_from_reader`), versions 2 and 3. What llama.cpp refuses is refused here.
String arrays (150,000 tokens, as many merges) are walked for their length and not kept.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import BinaryIO

import msgspec

from launcher.catalog.ggml_types import REMOVED, TYPES
from launcher.ir.catalog import Tensor

Value = int | float | bool | str | tuple[int | float | bool, ...]
"""A metadata value that is kept: a scalar, or a short array of numbers."""

MAX_HEADER_BYTES = 256 * 1024**2
"""A header that is longer is refused, so that a corrupt file costs seconds at worst and never the machine's memory."""
MAX_KEPT = 4096
"""Longest numeric array whose elements are kept; of longer ones only the length is."""
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_536
MAX_NAME_BYTES = 63
"""GGML_MAX_NAME less the terminator."""
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
VERSIONS = (2, 3)

_READS = (256 * 1024, 8 * 1024**2, 32 * 1024**2, MAX_HEADER_BYTES)
"""Bytes read at once; each time from the file's start, which is cheaper than joining pieces."""
_INT64_MAX = 2**63 - 1

_CHUNK = 512
_LANDMARK = b"tokenizer."
"""Beginnings of the names of the keys around a vocabulary."""
_LANDINGS = 4
"""Candidate ends of a string array that are tried."""

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in (
        (0, "B"),
        (1, "b"),
        (2, "H"),
        (3, "h"),
        (4, "I"),
        (5, "i"),
        (6, "f"),
        (7, "?"),
        (10, "Q"),
        (11, "q"),
        (12, "d"),
    )
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_KIND_AND_COUNT = struct.Struct("<IQ")
_TYPE_AND_OFFSET = struct.Struct("<IQ")
_PREAMBLE = struct.Struct("<4sIQQ")
_SHAPES = {n: struct.Struct(f"<{n}Q") for n in range(1, MAX_DIMS + 1)}

_RESUME = "resume or repeat the download; without the file a plan takes the architecture as declared"


class BadHeader(Exception):  # noqa: N818 - a verdict about a file, turned into a Finding at the room's edge
    """A file that is no loadable GGUF. `code` is a finding's code, `notes` say what to do."""

    def __init__(self, code: str, message: str, *notes: str) -> None:
        super().__init__(message)
        self.code, self.message, self.notes = code, message, notes


def _corrupt(message: str) -> BadHeader:
    return BadHeader(
        "catalog/corrupt-header", message, "fetch the file again; compare its checksum with the publisher's"
    )


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What one GGUF file says of itself.

    `values` holds scalars and short numeric arrays, `lengths` the length of every array. `digest` is the sha256 of the
    file's bytes before the padding and the data.
    """

    values: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    digest: str


class _Window:
    """The part of a stream read so far, and where the reader stands. Grows as the header turns out longer."""

    __slots__ = ("data", "exact", "file_bytes", "leapt", "pos", "stream")

    def __init__(self, stream: BinaryIO, file_bytes: int, *, exact: bool) -> None:
        self.stream, self.file_bytes, self.exact = stream, file_bytes, exact
        self.data = b""
        self.pos = 0
        self.leapt = 0

    def reserve(self, count: int) -> int:
        """Make `count` bytes from the current position available; the position. Raises BadHeader at the end."""
        end = self.pos + count
        if end > len(self.data):
            self._grow(end)
        return self.pos

    def _grow(self, end: int) -> None:
        if end > self.file_bytes:
            raise BadHeader(
                "catalog/truncated",
                f"the header is cut: it goes on to byte {end:,} or beyond, but the file has {self.file_bytes:,} bytes; "
                f"at least {end - self.file_bytes:,} are missing",
                _RESUME,
            )
        if end > MAX_HEADER_BYTES:
            raise _corrupt(f"the header claims more than {MAX_HEADER_BYTES // 1024**2} MiB at byte {self.pos:,}")
        size = min(next(size for size in _READS if size >= end), self.file_bytes)
        self.stream.seek(0)
        pieces = [self.stream.read(size)]
        while (have := sum(map(len, pieces))) < end:
            pieces.append(self.stream.read(size - have))
            if not pieces[-1]:
                raise BadHeader("catalog/truncated", f"the file shrank to {have:,} bytes while it was read", _RESUME)
        self.data = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The next values of `layout`."""
        at = self.reserve(layout.size)
        self.pos = at + layout.size
        return layout.unpack_from(self.data, at)

    def text(self, what: str) -> str:
        """The next length-prefixed UTF-8 string; `what` names it in errors."""
        (length,) = self.unpack(_U64)
        if length > MAX_HEADER_BYTES:
            raise _corrupt(f"{what} claims {length:,} bytes")
        at = self.reserve(length)
        self.pos = at + length
        try:
            return self.data[at : self.pos].decode()
        except UnicodeDecodeError as error:
            raise _corrupt(f"{what} at byte {at:,} is not UTF-8: {error.reason}") from None

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings: the hot loop of a header.

        At once to the next key, where there are seven zero bytes a string before it, the upper bytes of its length (all
        strings being shorter than 256 bytes); else a chunk at a time. Text with zero bytes can deceive this; then what
        follows does not parse, and `parse_header` reads again with `exact`.
        """
        while count:
            if not self.exact and self.leapt != len(self.data) and self._leap(count):
                return
            chunk = min(count, _CHUNK)
            self._skip_exactly(chunk)
            count -= chunk

    def _leap(self, count: int) -> bool:
        """Step over `count` strings to the key after them, where it is in what was read (15 ns a string)."""
        data, at = self.data, self.pos + _U64.size * count
        for _ in range(_LANDINGS):
            at = data.find(_LANDMARK, at + _U64.size)
            end = at - _U64.size
            if at < 0:
                self.leapt = len(data)  # there is nothing to land on before more is read
                return False
            if data.count(0, self.pos, end) == 7 * count and _U64.unpack_from(data, end)[0] < MAX_KEY_BYTES:
                self.pos = end
                return True
        return False

    def _skip_exactly(self, count: int) -> None:
        """Step over `count` strings of any length, reading on as needed (80 ns a string)."""
        length_at = _U64.unpack_from
        while count:
            data, pos, done = self.data, self.pos, 0
            try:
                for done in range(count):  # noqa: B007 - read below, to go on after more was read
                    pos += 8 + length_at(data, pos)[0]
            except (struct.error, OverflowError, IndexError):
                count -= done
            else:
                count = 0
            if pos - self.pos > MAX_HEADER_BYTES:
                raise _corrupt(f"a string array at byte {self.pos:,} holds a string that is longer than any header")
            self.pos = pos
            self.reserve(8 if count else 0)


def parse_header(stream: BinaryIO, file_bytes: int) -> Header:
    """The header of the GGUF in `stream`, whose file has `file_bytes` bytes; raises BadHeader, or OSError on reading.

    Also checks that every tensor lies inside the file, to the byte.
    """
    try:
        return _parse(_Window(stream, file_bytes, exact=False))
    except BadHeader:
        return _parse(_Window(stream, file_bytes, exact=True))


def _parse(window: _Window) -> Header:
    n_tensors, n_keys = _preamble(window)
    values, lengths = _metadata(window, n_keys)
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > 2**30:
        raise _corrupt(f"general.alignment is {alignment!r}; it must be a power of two")
    tensors = _tensor_table(window, n_tensors, alignment)
    _check_extent(tensors, window, alignment)
    digest = hashlib.sha256(memoryview(window.data)[: window.pos]).hexdigest()
    return Header(values=values, lengths=lengths, tensors=tensors, digest=digest)


def _preamble(window: _Window) -> tuple[int, int]:
    """How many tensors and keys the file says that it has."""
    if window.file_bytes == 0:
        raise BadHeader("catalog/truncated", "the file is empty", _RESUME)
    at = window.reserve(min(4, window.file_bytes))
    magic = window.data[at : at + 4]
    if not b"GGUF".startswith(magic):
        hint = _KNOWN_MAGIC.get(magic, "is this the right file?")
        raise BadHeader("catalog/not-gguf", f"the file starts with {repr(magic)[1:]}, not with 'GGUF'", hint)
    at = window.reserve(_PREAMBLE.size)
    _, version, n_tensors, n_keys = _PREAMBLE.unpack_from(window.data, at)
    window.pos += _PREAMBLE.size
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise BadHeader(
                "catalog/unsupported-version",
                f"the file is big-endian GGUF version {swapped}; only little-endian files load here",
                "convert it with gguf_convert_endian.py of the gguf package, or take a little-endian file",
            )
        raise BadHeader(
            "catalog/unsupported-version",
            f"GGUF version {version} is not supported; versions {VERSIONS[0]} and {VERSIONS[-1]} are",
            "convert the model again" if version < VERSIONS[0] else "it may need a newer launch and llama.cpp",
        )
    if n_keys > MAX_KEYS or n_tensors > MAX_KEYS * 16:
        raise _corrupt(f"the header claims {n_keys:,} keys and {n_tensors:,} tensors")
    return n_tensors, n_keys


_KNOWN_MAGIC = {
    **dict.fromkeys((b"lmgg", b"fmgg", b"tjgg", b"algg"), "it is from before GGUF: convert the model again"),
    b"vers": "it looks like a Git LFS pointer: `git lfs pull` fetches the model itself",
    b"PK\x03\x04": "it is a zip archive or a PyTorch file: convert the model to GGUF",
    b"<!DO": "it is a web page, perhaps a login or an error: fetch the model again",
}
"""Other file formats found where a model should be, by their first four bytes."""


def _metadata(window: _Window, n_keys: int) -> tuple[dict[str, Value], dict[str, int]]:
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_keys):
        key = window.text("a key")
        if key in values or key in lengths:
            raise _corrupt(f"the key {key!r} occurs twice")
        (kind,) = window.unpack(_U32)
        if kind == _STRING:
            values[key] = window.text(key)
        elif kind == _ARRAY:
            lengths[key], kept = _array(window, key)
            if kept is not None:
                values[key] = kept
        else:
            (values[key],) = window.unpack(_scalar(kind, key))
    return values, lengths


def _scalar(kind: int, key: str) -> struct.Struct:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise _corrupt(f"{key!r} has value type {kind}, which GGUF does not define")
    return layout


def _array(window: _Window, key: str) -> tuple[int, tuple[int | float | bool, ...] | None]:
    """Length of the array at hand and, of a short numeric one, its elements."""
    kind, count = window.unpack(_KIND_AND_COUNT)
    smallest = _U64.size if kind == _STRING else _scalar(kind, key).size
    if count * smallest > MAX_HEADER_BYTES:
        raise _corrupt(f"the array {key!r} claims {count:,} elements")
    if kind == _STRING:
        window.skip_strings(count)
        return count, None
    at = window.reserve(count * smallest)
    window.pos += count * smallest
    if count > MAX_KEPT:
        return count, None
    return count, struct.unpack_from(f"<{count}{_scalar(kind, key).format[1:]}", window.data, at)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _tensor_table(window: _Window, n_tensors: int, alignment: int) -> tuple[Tensor, ...]:
    """Every tensor's info; each must start where the one before it ends, padded."""
    tensors: dict[str, Tensor] = {}
    expected = 0
    for _ in range(n_tensors):
        tensor, offset = _tensor(window)
        if tensor.name in tensors:
            raise _corrupt(f"the tensor {tensor.name!r} occurs twice")
        if offset != expected:
            raise _corrupt(f"the tensor {tensor.name!r} is at offset {offset:,}; {expected:,} was expected")
        tensors[tensor.name] = tensor
        expected += _padded(tensor.size_bytes, alignment)
    return tuple(tensors.values())


def _tensor(window: _Window) -> tuple[Tensor, int]:
    name = window.text("a tensor name")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _corrupt(f"a tensor name has {len(name.encode()):,} bytes; {MAX_NAME_BYTES} is the most")
    (n_dims,) = window.unpack(_U32)
    if n_dims > MAX_DIMS:
        raise _corrupt(f"the tensor {name!r} claims {n_dims:,} dimensions")
    shape = window.unpack(_SHAPES[n_dims]) if n_dims else (1,)
    number, offset = window.unpack(_TYPE_AND_OFFSET)
    kind = TYPES.get(number)
    if kind is None:
        known = REMOVED.get(number)
        raise BadHeader(
            "catalog/corrupt-header",
            f"the tensor {name!r} has type {number}"
            + (f" ({known}), which llama.cpp removed" if known else ", unknown"),
            "quantize the model again" if known else "it may need a newer launch and llama.cpp",
        )
    weights = math.prod(shape)
    if weights > _INT64_MAX:
        raise _corrupt(f"the tensor {name!r} has the shape {shape}, more weights than 64 bits count")
    if shape[0] % kind.block:
        raise _corrupt(f"the tensor {name!r} of type {kind.name} has rows of {shape[0]}, no multiple of {kind.block}")
    size = weights // kind.block * kind.block_bytes
    return Tensor(name=name, type=kind.name, shape=shape, size_bytes=size), offset


def _check_extent(tensors: tuple[Tensor, ...], window: _Window, alignment: int) -> None:
    """Every tensor lies inside the file. Source: llama-model-loader.cpp `llama_tensor_weight`."""
    needed, have, cut = window.pos, window.file_bytes, ""
    for tensor in tensors:
        needed = _padded(needed, alignment) + tensor.size_bytes
        cut = cut or (tensor.name if needed > have else "")
    if cut:
        raise BadHeader(
            "catalog/truncated",
            f"the file has {have:,} bytes but its tensor table needs {needed:,}: {needed - have:,} are missing, "
            f"from {cut} on",
            _RESUME,
        )
