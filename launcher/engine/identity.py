"""Tell engines apart: by their bytes, and by every library that running them would load. I/O."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.base.programs import interpreter
from launcher.engine.asking import NoAnswerError, ask

_RESOLVED = re.compile(r"^\s*(?:\S+ => )?(/.*) \(0x[0-9a-f]+\)$", re.MULTILINE)
"""A line of the loader's list of libraries."""
_LOADER_S = 10.0
_LIBRARIES = ("llama", "ggml")
_HEADER_KEY = b"general.architecture"
"""A key that every reader of GGUF files asks for: a llama-server that is one static file contains it."""


def may_be_kept(binary: Path, env: Mapping[str, str]) -> bool:
    """Whether answers of `binary` may be cached under its identity: only if it is seen to be an engine itself.

    A script, and a program that becomes another one, may run another engine next time.
    """
    if interpreter(binary)[0] == "script":
        return False
    if any(name in library.name for library in _loaded(binary, env) for name in _LIBRARIES):
        return True
    try:
        with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_HEADER_KEY) >= 0
    except (OSError, ValueError):
        return False


def identity(binary: Path, digest: str, env: Mapping[str, str]) -> str:
    """Hex name of an engine: by `digest` of the binary, `env` (added to ours: a library path), and its libraries.

    Libraries are what the loader resolves (ld.so(8) `--list`: RUNPATH, LD_LIBRARY_PATH, its cache), and those beside
    the binary and on the path in `env`, where ggml finds its backends. Each counts by path, size, inode and the time of
    its last change (ctime), which a copy does not take along.
    """
    folders = [binary.resolve().parent, *(Path(d) for d in env.get("LD_LIBRARY_PATH", "").split(":") if d)]
    beside = (library for folder in folders for library in folder.glob("lib*.so*"))
    key = hashlib.sha256(f"{digest}\n{sorted(env.items())}\n".encode(errors="surrogateescape"))
    for library in sorted({*beside, *_loaded(binary, env)}):
        try:
            status = library.stat()
        except OSError:  # a link that leads nowhere: nothing is loaded by it
            continue
        facts = f"{library} {status.st_size} {status.st_ino} {status.st_ctime_ns}\n"
        key.update(facts.encode(errors="surrogateescape"))
    return key.hexdigest()


def _loaded(binary: Path, env: Mapping[str, str]) -> Iterator[Path]:
    """The libraries that the loader of `binary` finds; none if it has no loader, or the loader does not answer."""
    kind, loader = interpreter(binary)
    if kind != "elf" or loader is None:
        return
    try:
        listed = ask((loader, "--list", str(binary.resolve())), env, timeout_s=_LOADER_S).out
    except (OSError, NoAnswerError):
        return
    yield from map(Path, _RESOLVED.findall(listed))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def binary_digest(binary: Path, env: Mapping[str, str]) -> str:
    """The identity of the engine `binary`. Raises OSError."""
    return identity(binary, sha256_of(binary), env)
