"""The runtime as a process of its own: `python -m launcher.runtime DIR`. I/O."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import LaunchError
from launcher.runtime import run
from launcher.supervise.events import AnyEvent, FleetFailed, FleetReady, encode_event


def main(argv: Sequence[str]) -> int:
    """`python -m launcher.runtime DIR [--route-only] [--events-fd N] [--asked-ns N]`; events as JSON lines on stderr.

    The events up to ready or failed also go to descriptor N. The exit code is that of the LaunchError.
    """
    descriptor = int(argv[argv.index("--events-fd") + 1]) if "--events-fd" in argv else -1
    asked_ns = int(argv[argv.index("--asked-ns") + 1]) if "--asked-ns" in argv else None
    if descriptor >= 0:
        os.set_inheritable(descriptor, False)

    def on_event(event: AnyEvent) -> None:
        nonlocal descriptor
        line = encode_event(event)
        # Unbuffered: on a full disk a line is lost, and nothing else.
        with contextlib.suppress(OSError):
            os.write(2, line)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
