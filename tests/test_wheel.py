"""The built wheel, installed outside the checkout, compiles with its packaged conf/ and templates/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_compiles_outside_the_checkout(tmp_path: Path) -> None:
    """A fresh environment with only the wheel (dependencies borrowed by path) plans and renders."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    site = next((tmp_path / "env/lib").glob("python3*/site-packages"))
    # a plain path line: the development environment's own editable install is not followed
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"XDG_STATE_HOME": str(tmp_path)}
    for command in (["plan", "--json"], ["render"]):
        done = subprocess.run(
            [tmp_path / "env/bin/launch", *command, "hardware=epyc", "profile=hot_only"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "generated/epyc-hot_only/fleet.json").is_file()
    where = subprocess.run(
        [python, "-c", "import launcher; print(launcher.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    shipped = site / "launcher/_packaged/conf/server/assistant.yaml"
    (schema,) = re.findall(r"\$schema=(.*)", shipped.read_text())
    assert (shipped.parent / schema).is_file()
