"""Which of several hosts a command is for: `--host`, else this machine's name."""

from __future__ import annotations

import socket

from launcher.compiler import Compilation, hosts_of, on_host
from launcher.errors import ConfigError, Finding, error_finding


def of_host(compiled: Compilation, host: str | None) -> Compilation:
    """The part of `compiled` that one host runs: `host`, else the one named as this machine is.

    A fleet for one machine is what it is. Raises ConfigError when `host` is no host of the fleet, or none is given and
    this machine is none of them.
    """
    names = hosts_of(compiled)
    wanted = host if host is not None else socket.gethostname().partition(".")[0]
    if wanted in names:
        return on_host(compiled, wanted)
    if host is None and not names:
        return compiled
    raise ConfigError([_no_such_host(compiled.plan.deployment, host, wanted, names)])


def _no_such_host(deployment: str, host: str | None, wanted: str, names: tuple[str, ...]) -> Finding:
    """Why no host could be chosen, and what to type."""
    if not names:
        message = f"{deployment} is for one machine, and --host {host} names one of several"
    elif host is None:
        message = f"{deployment} is for {len(names)} hosts, and this machine ({wanted}) is none of them"
    else:
        message = f"{deployment} has no host {host}"
    notes = (f"say which one: --host {' | '.join(names)}",) if names else ()
    return error_finding("config/which-host", message, *notes, key="hardware.hosts")
