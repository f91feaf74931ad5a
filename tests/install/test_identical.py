"""The same config gives the same bytes, whoever renders it, where, when and in which language; and installs once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCH = Path(sys.executable).with_name("launch")
NOBODY = "65534"


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Permission bits and content of every file below `root`."""
    return {str(p.relative_to(root)): (p.stat().st_mode, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def render(home: Path, overrides: str, prefix: list[str], umask: int, **env: str) -> dict[str, tuple[int, bytes]]:
    """What `launch render` writes as another process in another environment."""
    home.mkdir()
    home.chmod(0o777)
    path = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [*prefix, LAUNCH, "render", *overrides.split(), f"--output={home}/out"],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": path, **env},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tree(home / "out")


def another_machine() -> list[str]:
    """Words that make what follows run as another user on a host of another name, as far as we may here."""
    if os.geteuid() != 0:
        return []
    prefix = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh"] if shutil.which("unshare") else []
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    try:  # who may not read this checkout cannot render from it
        subprocess.run([*as_nobody, LAUNCH, "--help"], capture_output=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError):
        return prefix
    return [*prefix, *as_nobody]


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="launch-identical-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("overrides", ["hardware=epyc profile=hot_only", "hardware=sovereign profile=three_tier"])
def test_two_machines_render_the_same_bytes(overrides: str, anybodys: Path) -> None:
    """Home, directory, time zone, language, umask, hash seed, terminal, user and host name leave no trace."""
    here = render(anybodys / "a", overrides, [], 0o022, LANG="C.UTF-8", TZ="UTC", PYTHONHASHSEED="1")
    there = render(
        anybodys / "b", overrides, another_machine(), 0o077, LANG="tr_TR.ISO-8859-9", LC_ALL="POSIX",
        TZ="Pacific/Apia", PYTHONHASHSEED="99", USER="x", XDG_CONFIG_HOME="/nowhere", COLUMNS="40", FORCE_COLOR="1",
    )  # fmt: skip
    assert len(here) > 15
    assert there == here
