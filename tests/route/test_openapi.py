"""The control API does what its own OpenAPI document says: asked by schemathesis over every operation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OPERATIONS = Path(__file__).with_name("operations.py")


def test_nothing_undocumented_is_answered() -> None:
    """In a pytest of its own: every worker would import schemathesis, which takes seconds, only to collect."""
    words = ("-p", "schemathesis.pytest.plugin", "-p", "no:xdist", "-rA", str(OPERATIONS))
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED ") == 4  # operations
