"""Child processes of tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import AnyStr


@contextlib.contextmanager
def killed_on_failure(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """A process within the block; where the block fails it is killed, as `with Popen(…)` would wait for its end."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
