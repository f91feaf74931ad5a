"""A llama-server that is slower by a known share: `python slowed.py 0.2 BINARY ARGS…` stops it a fifth of the time.

A program that is only asked (`--help`, `--version`) runs as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PERIOD_S = 0.02


def main() -> int:
    """Run the server, stopped and continued, until it or we end."""
    share, binary, *words = float(sys.argv[1]), *sys.argv[2:]
    if "--port" not in words or share <= 0:
        os.execv(binary, [binary, *words])  # noqa: S606
    libc = ctypes.CDLL(None)
    child = subprocess.Popen([binary, *words], preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))  # noqa: PLW1509

    def end(number: int, _frame: object) -> None:
        """Pass it on; a stopped process ends only when it goes on."""
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)

    signal.signal(signal.SIGTERM, end)
    while child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGSTOP)
            time.sleep(PERIOD_S * share)
            child.send_signal(signal.SIGCONT)
        time.sleep(PERIOD_S * (1 - share))
    return child.returncode


def wrapper(path: Path, share: float, binary: str) -> Path:
    """Write an executable that is `binary`, slower by `share`."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {share} "{binary}" "$@"\n')
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    sys.exit(main())
