"""The runtime as a process of its own: `python -m launcher.runtime DIR`. I/O."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.base.background import BackgroundHandler
from launcher.errors import LaunchError
from launcher.runtime import run
from launcher.supervise.events import AnyEvent, FleetFailed, FleetReady, encode_event


def main(argv: Sequence[str]) -> int:
    """`python -m launcher.runtime DIR [--route-only] [--events-fd N] [--asked-ns N]`.

    Writes events to stderr as JSON lines, with their times, and those up to ready or failed also to descriptor N.
    Returns the exit code: 0, or that of the LaunchError.
    """
    descriptor = int(argv[argv.index("--events-fd") + 1]) if "--events-fd" in argv else -1
    asked_ns = int(argv[argv.index("--asked-ns") + 1]) if "--asked-ns" in argv else None
    if descriptor >= 0:
        os.set_inheritable(descriptor, False)

    _log_with_times()

    def on_event(event: AnyEvent) -> None:
        nonlocal descriptor
        line = encode_event(event)
        # Unbuffered: on a full disk a line is lost, and nothing else.
        with contextlib.suppress(OSError):
            os.write(2, b'{"at":"%b",%b' % (time.strftime("%Y-%m-%dT%H:%M:%S%z").encode(), line[1:]))
        if descriptor >= 0:
            # Whoever watched may be gone: that is no reason to stop.
            with contextlib.suppress(OSError):
                os.write(descriptor, line)
            if isinstance(event, (FleetReady, FleetFailed)):
                os.close(descriptor)
                descriptor = -1

    try:
        return run(Path(argv[0]), on_event=on_event, route_only="--route-only" in argv, asked_ns=asked_ns)
    except LaunchError as error:
        return error.exit_code


def _log_with_times() -> None:
    handler = BackgroundHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
