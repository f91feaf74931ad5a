"""`python -m launcher.engine.record NAME BINARY`: keep a build's dialect as packaged data."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.engine.probing import record

USAGE = "usage: python -m launcher.engine.record NAME BINARY"

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(USAGE)
    from gguf import MODEL_ARCH_NAMES

    record(sys.argv[1], Path(sys.argv[2]), candidates=MODEL_ARCH_NAMES.values())
