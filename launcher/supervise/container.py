"""Containers behind `podman run` or `docker run`: the process that we watch is only their client. I/O.

A client that is killed leaves its container running, on our port and without a state file of ours; so the container is
removed by name whenever its client has ended, and before anything is started.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

_ENGINES = frozenset({"podman", "docker"})
_REMOVE_S = 20.0
_INSPECT_S = 5.0


def remove(argv: tuple[str, ...]) -> None:
    """Remove the container that the command `argv` runs, if there is one; nothing for any other command. Blocks."""
    found = engine_and_name(argv)
    if found is not None:
        engine, name = found
        # podman's would send SIGTERM first, and wait 10 s: its client has passed ours on, and had its time
        at_once = ("--time=0",) if Path(engine).name == "podman" else ()
        _ask((engine, "rm", "--force", *at_once, name), _REMOVE_S)


def main_process(argv: tuple[str, ...]) -> int | None:
    """The first process of the container that `argv` runs; None when there is none, or nobody says. Blocks."""
    found = engine_and_name(argv)
    if found is None:
        return None
    engine, name = found
    answer = _ask((engine, "inspect", "--format", "{{.State.Pid}}", name), _INSPECT_S).strip()
    return int(answer) if answer.isdecimal() and int(answer) > 1 else None


def engine_and_name(argv: tuple[str, ...]) -> tuple[str, str] | None:
    """Program and container of `podman run … --name=NAME … image`; None for another command."""
    if len(argv) < 2 or Path(argv[0]).name not in _ENGINES or argv[1] != "run":
        return None
    name = next((word.removeprefix("--name=") for word in argv[2:] if word.startswith("--name=")), "")
    return (argv[0], name) if name else None


def _ask(argv: tuple[str, ...], timeout_s: float) -> str:
    """What the engine prints; nothing when it is not there, refuses, or takes too long."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    return ""
