"""Model files spoiled on purpose, for whoever reads headers or starts servers on them.

Each fault takes a sound GGUF file and a directory and returns the path of a spoiled copy named after the fault.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from . import write_parts
from .blueprint import Blueprint
from .storage import write_hole

_VERSION_AT, _TENSORS_AT = 4, 8


def empty(sound: Path, directory: Path) -> Path:
    """No bytes at all."""
    return _save(directory, sound, "empty", b"")


def garbage(sound: Path, directory: Path) -> Path:
    """As long as the sound file, every byte wrong."""
    return _save(directory, sound, "garbage", bytes(b ^ 0xA5 for b in sound.read_bytes()))


def bad_magic(sound: Path, directory: Path) -> Path:
    """The first four bytes say GGML, the rest is sound."""
    return _save(directory, sound, "bad-magic", b"GGML" + sound.read_bytes()[4:])


def future_version(sound: Path, directory: Path) -> Path:
    """A GGUF version that nobody has defined."""
    return _patched(sound, directory, "future-version", _VERSION_AT, struct.pack("<I", 99))


def absurd_count(sound: Path, directory: Path) -> Path:
    """A tensor count of 2^60: a reader that believes it runs out of memory."""
    return _patched(sound, directory, "absurd-count", _TENSORS_AT, struct.pack("<Q", 1 << 60))


def truncated_header(sound: Path, directory: Path) -> Path:
    """Cut inside the key-value pairs."""
    return _save(directory, sound, "truncated-header", sound.read_bytes()[:512])


def truncated(sound: Path, directory: Path) -> Path:
    """The last quarter is missing: header whole, data cut."""
    data = sound.read_bytes()
    return _save(directory, sound, "truncated", data[: len(data) * 3 // 4])


def one_byte_short(sound: Path, directory: Path) -> Path:
    """One byte of the last tensor is missing (of a tiny model: its last tensor ends where the file does)."""
    return _save(directory, sound, "one-byte-short", sound.read_bytes()[:-1])


def lfs_pointer(sound: Path, directory: Path) -> Path:
    """What a clone without git-lfs leaves in place of the file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {sound.stat().st_size}\n"
    return _save(directory, sound, "lfs-pointer", text.encode())


def unknown_architecture(sound: Path, directory: Path) -> Path:
    """A sound file whose architecture no build knows."""
    path = directory / f"unknown-architecture-{sound.name}"
    blueprint = Blueprint(architecture="frobnicator", metadata={"tokenizer.ggml.model": "none"})
    blueprint.put(block_count=1, context_length=256, embedding_length=32)
    blueprint.weight("token_embd.weight", 32, 32)
    write_hole(path, blueprint, quantization="f16")
    return path


def bit_rot(sound: Path, directory: Path) -> Path:
    """The last kilobyte is 0xFF (NaN in f16): the server loads and serves it unless told `--check-tensors`."""
    return _save(directory, sound, "bit-rot", sound.read_bytes()[:-1024] + b"\xff" * 1024)


FAULTS: dict[str, Callable[[Path, Path], Path]] = {
    "empty": empty,
    "garbage": garbage,
    "bad magic": bad_magic,
    "future version": future_version,
    "absurd count": absurd_count,
    "truncated header": truncated_header,
    "truncated": truncated,
    "one byte short": one_byte_short,
    "lfs pointer": lfs_pointer,
    "unknown architecture": unknown_architecture,
}
"""Faults that keep the server from loading, by name."""


def missing_part(directory: Path, arch: str = "llama") -> Path:
    """Part 1 of a split model whose part 2 is not there."""
    first, second = write_parts(arch, directory)
    second.unlink()
    return first


def _patched(sound: Path, directory: Path, fault: str, at: int, change: bytes) -> Path:
    """A copy with some bytes replaced."""
    data = bytearray(sound.read_bytes())
    data[at : at + len(change)] = change
    return _save(directory, sound, fault, bytes(data))


def _save(directory: Path, sound: Path, fault: str, data: bytes) -> Path:
    """Write the spoiled copy."""
    path = directory / f"{fault}-{sound.name}"
    path.write_bytes(data)
    return path
