"""Whether a fleet may run here at all, told by names of files: what looks closer takes 0.15 s to import."""

from __future__ import annotations

from pathlib import Path

from launcher.compiler import Compilation
from launcher.files import deployment_state_dir
from launcher.ir.deployment import RECORDS


def may_run(compiled: Compilation) -> bool:
    """Whether the plan's deployment, or its bundle for a host, has a state directory or an install record here."""
    whole = compiled.plan.deployment
    names = [whole, *(f"{whole}-{host}" for host in compiled.plan.config.hardware.hosts)]
    try:
        states = [deployment_state_dir(name) for name in names]
    except ValueError:  # a name that no directory can have
        return False
    folders = (Path(RECORDS["system"]), Path.home() / RECORDS["user"])
    return any(path.exists() for path in (*states, *(folder / f"{name}.json" for name in names for folder in folders)))
