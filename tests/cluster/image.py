"""`python -m tests.cluster.image LLAMA_SERVER`: a tar of what pods of this checkout run, on stdout.

This Python and what `launch` imports, as they are installed here; a llama-server with its libraries; curl, with which
podman asks probes; a shell. Everything lies where it lies on this machine.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from launcher.render.pods import USER

_CHECKOUT = Path(__file__).parents[2]
_OURS = ("launcher", "conf", "templates", "schemas")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LIBRARY = re.compile(r"(/\S+) \(0x")
_UNUSED = frozenset({"test", "tests", "idlelib", "tkinter", "ensurepip", "site-packages", "lib2to3", "__pycache__"})


def distributions(name: str, known: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """What `name` needs to be imported, itself first."""
    name = name.lower().replace("_", "-")
    if name in known:
        return
    known.add(name)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # for another platform
        return
    yield found
    for need in found.requires or ():
        if "extra ==" not in need and (match := _NAME.match(need)):
            yield from distributions(match[0], known)


def files(llama_server: Path) -> Iterator[Path]:
    """Everything but system libraries."""
    yield from (Path(sys.executable), Path(sys.prefix) / "pyvenv.cfg")
    base = Path(sys.base_prefix)
    yield from (path for path in (base / "bin").iterdir() if path.name.startswith("python3"))
    yield from (path for path in (base / "lib").glob("libpython*") if path.is_file())
    standard = Path(os.__file__).parent
    for folder, inner, names in os.walk(standard):
        inner[:] = [name for name in inner if name not in _UNUSED and not name.startswith("config-")]
        yield from (Path(folder) / name for name in names)
    for found in distributions("launch-fleet", set()):
        yield from (Path(str(found.locate_file(path))).resolve() for path in found.files or ())
    for part in _OURS:
        yield from (path for path in (_CHECKOUT / part).rglob("*") if path.suffix != ".pyc")
    yield from llama_server.parent.iterdir()
    yield from (Path(found) for program in ("curl", "dash") if (found := shutil.which(program)))


def libraries(programs: list[Path], beside: Path) -> set[Path]:
    """Where the dynamic linker finds what `programs` need."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(beside)}
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False, env=env).stdout
    return {Path(found) for found in _LIBRARY.findall(listed)}


def is_program(path: Path) -> bool:
    """Whether it is one, or a library."""
    with path.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def main() -> None:
    """Write the tar."""
    llama_server = Path(sys.argv[1]).resolve()
    added: set[str] = set()
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", dereference=True) as tar:

        def add(path: Path, name: str = "") -> None:
            name = name or str(path).lstrip("/")
            for parent in [*reversed(Path(name).parents)][1:]:
                if str(parent) not in added:
                    added.add(str(parent))
                    folder = tarfile.TarInfo(str(parent))
                    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(folder)
            if name in added or not path.is_file():
                return
            added.add(name)
            entry = tar.gettarinfo(path, name)
            entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size  # no hard links
            entry.uid = entry.gid = 0
            entry.mode |= 0o444 | (0o111 if entry.mode & 0o100 else 0)
            with path.open("rb") as content:
                tar.addfile(entry, content)

        for name, mode, owner in (("tmp", 0o1777, 0), ("var/lib/launch", 0o755, USER)):  # podman's volumes are alike
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, mode, owner, owner
            tar.addfile(folder)
            added.add(name)
        programs = []
        for path in files(llama_server):
            if path.is_file():
                add(path)
                programs += [path] if is_program(path) else []
        for path in sorted(libraries(programs, llama_server.parent)):
            add(path)
        script = f"#!/bin/sh\nexec {sys.executable} -c 'from launcher.cli import main; main()' \"$@\"\n".encode()
        entry = tarfile.TarInfo("usr/local/bin/launch")
        entry.mode, entry.size = 0o755, len(script)
        tar.addfile(entry, io.BytesIO(script))
        add(Path(shutil.which("dash") or "/bin/sh"), "bin/sh")


if __name__ == "__main__":
    main()
