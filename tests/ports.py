"""Ports for tests: each worker has its own, below those that the kernel gives to outgoing connections."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

_FIRST, _EACH, _WORKERS = 11_000, 5_000, 4


def _own() -> range:
    """The ports of this process: nobody else who runs these tests takes one between our look and our use."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    return range(_FIRST + worker * _EACH, _FIRST + (worker + 1) * _EACH)


_ports = itertools.cycle(_own())
for _ in range(random.Random().randrange(_EACH)):  # noqa: S311  # not where the run before began
    next(_ports)


def free_port() -> int:
    """A loopback port that nobody holds now."""
    for port in itertools.islice(_ports, _EACH):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("every port is taken")
