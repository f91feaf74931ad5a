"""A test that fails within a block does not wait for the process of the block."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.children import killed_on_failure


def test_what_fails_does_not_wait() -> None:
    """It is killed and reaped at once; where nothing fails it ends by itself."""
    began = time.monotonic()
    with pytest.raises(AssertionError, match="as meant"), killed_on_failure(subprocess.Popen(["sleep", "600"])) as left:
        raise AssertionError("as meant")
    assert time.monotonic() - began < 60
    with killed_on_failure(subprocess.Popen(["sleep", "0"])) as ends:
        pass
    assert (left.returncode, ends.returncode) == (-9, 0)
