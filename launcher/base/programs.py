"""Check whether a program can be run here before it is run, so that a refusal names a remedy. I/O."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from pathlib import Path

NOT_HERE = "is not on this host"
SCRIPT = b"#!"
ELF64 = b"\x7fELF\x02\x01"
"""Magic bytes of a 64-bit little-endian ELF file."""
PT_INTERP = 3
_HEAD_BYTES = 4096
_PROGRAM_HEADER = struct.Struct("<I4xQ16xQ16x")
"""An ELF64 program header: p_type, p_offset, p_filesz."""


def why_not_runnable(program: str) -> str | None:
    """Why `program` (a path, or a name for PATH) cannot be run, as words to follow its name; None if it can."""
    if not program:
        return "(nothing) names no program"
    found = program if "/" in program else shutil.which(program)
    if found is None:
        return NOT_HERE
    path = Path(found)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else NOT_HERE
    except OSError as error:
        return "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be run: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a directory: name the program in it"
    if not stat.S_ISREG(mode):
        return "is no regular file"
    return _unfit(path)


def _unfit(path: Path) -> str | None:
    """Why the regular file `path` cannot be run; None if it may be tried."""
    if not os.access(path, os.X_OK):
        return f"is not executable: chmod +x {path}"
    if not path.stat().st_size:
        return "is an empty file"
    kind, by = interpreter(path)
    if by is None or os.path.exists(by):  # noqa: PTH110 - a Path raises where a folder is closed or a name too long
        return None
    if by.endswith("\r"):
        return "is a script with line ends of Windows (CRLF): nothing has the name of its interpreter"
    return f"is {'a script for' if kind == 'script' else 'a program for the loader'} {by}, which is not there"


def interpreter(path: Path) -> tuple[str, str | None]:
    """A program's kind (`script`, `elf`, `other`) and what runs it: a script's program, or an ELF file's loader.

    (`other`, None) if it cannot be read; a static ELF file has no loader (None).
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(SCRIPT):
                words = head.partition(b"\n")[0][len(SCRIPT) :].replace(b"\t", b" ").strip(b" ").split(b" ")
                return "script", os.fsdecode(words[0]) or None
            if not head.startswith(ELF64):
                return "other", None
            (start,), (size, count) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<HH", head, 54)
            file.seek(start)
            for kind, offset, length in _PROGRAM_HEADER.iter_unpack(file.read(size * count)):
                if kind == PT_INTERP:
                    file.seek(offset)
                    return "elf", os.fsdecode(file.read(min(length, _HEAD_BYTES)).rstrip(b"\0"))
    except (OSError, struct.error, ValueError):  # ValueError: a place that no file has
        return "other", None
    return "elf", None
