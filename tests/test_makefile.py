"""`make run` on a CPU that the packaged engine is none for, and with an engine that was built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def recipe(data: Path, *words: str) -> str:
    """The commands of `make run`, not run. `data` is where built engines lie."""
    env = {**os.environ, "XDG_DATA_HOME": str(data)}
    return subprocess.run(
        ["make", "-n", "run", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout


def test_an_unfit_cpu_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    """Said first, then an engine is compiled, and used; the wheel that cannot run is not fetched."""
    said = recipe(tmp_path, "FITS=")
    assert said.index("none for") < said.index("launcher.engine.build") < said.index("launch up")
    assert "engine=built" in said
    assert "grep -v llama-server embedded.txt" in said or ".embedded" not in said


def test_a_built_engine_is_used(tmp_path: Path) -> None:
    """After `make engine`, `make run` runs what it built."""
    assert "engine=built" not in recipe(tmp_path, "FITS=yes")
    built = tmp_path / "launch/engines/current/bin/llama-server"
    built.parent.mkdir(parents=True)
    built.touch()
    assert "engine=built" in recipe(tmp_path, "FITS=yes")
