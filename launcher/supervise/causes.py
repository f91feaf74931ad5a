"""The cause of a failed start or of an end: facts from the host, in addition to the log. I/O."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from pathlib import Path

from launcher.base.addresses import is_path, port_or_path
from launcher.supervise import ports
from launcher.supervise.diagnosis import Diagnosis, diagnose
from launcher.supervise.owner import Ending
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FROM_OUTSIDE = frozenset({None, 0, *(-number for number in _SENT), *(128 + number for number in _SENT)})
"""Exit codes that no request need have caused (signals from outside); None: unknown, as for an adopted process."""

UNEXPLAINED = frozenset({"supervise/exited", "supervise/crashed-loading"})
"""Diagnoses without a cause, which a repeated start may show: llama-server often loses its last log lines as it
ends."""


def obstacle(spec: ProcessSpec, *, programs: bool = True) -> Diagnosis | None:
    """Why a start must fail, found before a process is made: program, files and port; None: no reason.

    `programs` False: the program is not looked for, because this process does not execute it (systemd units).
    """
    if programs and shutil.which(spec.unit.argv[0]) is None:
        code = "supervise/container-engine-missing" if spec.unit.container else "supervise/binary-missing"
        remedy = _remedy(spec)
        return Diagnosis(code=code, cause=f"{spec.unit.argv[0]} is not there or not executable", remedy=remedy)
    missing = [file for file in spec.unit.files if not os.path.exists(file)]  # noqa: PTH110 - a Path raises where it may not look
    if missing:
        cause = f"missing: {', '.join(missing[:3])}"
        return Diagnosis(code="supervise/model-missing", cause=cause, remedy="fetch it, or correct the path")
    owner = None
    with contextlib.suppress(OSError, ValueError):  # as below; whatever is there, the start itself will say so
        owner = ports.port_owner(spec.unit.port, spec.unit.host)
    if owner is not None:
        cause = f"{_place(spec)} is held by {owner}, which this fleet did not start"
        return Diagnosis(code="supervise/port-busy", cause=cause, remedy=_elsewhere(spec))
    return None


def _place(spec: ProcessSpec) -> str:
    return port_or_path(spec.unit.host, spec.unit.port)


def _elsewhere(spec: ProcessSpec) -> str:
    return f"stop it, or set another `{'host' if is_path(spec.unit.host) else 'port'}`"


def _remedy(spec: ProcessSpec) -> str:
    if Path(spec.unit.argv[0]).name == "numactl":
        return "apt-get install numactl, or drop the server's `numa`"
    if spec.unit.kind == "service" and not spec.unit.container:
        return "install it, or correct its `command`"
    return "install it, or set `runtime.container_engine`" if spec.unit.container else "install it, or set `engine`"


def cause_of_end(spec: ProcessSpec, ending: Ending, *, starting: bool) -> Diagnosis:
    """The cause of an end; a port in use is named with its owner.

    A llama-server that exits at once may lose its last log lines (its logger is a thread), so a port in use is looked
    for even when the log does not mention one.
    """
    if ending.refused is not None:
        return ending.refused
    loading = starting and spec.unit.kind == "server"
    found = diagnose(ending.code, ending.tail, oom_killed=ending.oom_killed, loading=loading)
    if found.code != "supervise/port-busy" and not (found.code == "supervise/exited" and starting):
        return found
    try:
        owner = ports.port_owner(spec.unit.port, spec.unit.host)
    except (OSError, ValueError) as error:  # no descriptor left, /proc hidden: it has ended all the same
        _LOG.warning("why %s ended cannot be looked into: %s", spec.name, error)
        return found
    if owner is None:
        return found
    cause = f"{_place(spec)} is held by {owner}"
    return Diagnosis(code="supervise/port-busy", cause=cause, remedy=_elsewhere(spec), line=found.line)


def overdue(spec: ProcessSpec, reason: str) -> Diagnosis:
    """The diagnosis of a start that was given up: the lifecycle's `reason`, and the setting that allows more time."""
    stalled = reason.startswith("stalled")
    code = "supervise/stalled" if stalled else "supervise/not-ready"
    setting = f"{spec.unit.kind}s.{spec.name}.{'stall_timeout_s' if stalled else 'start_timeout_s'}"
    remedy = f"read its log; if it only needs longer, raise `{setting}`"
    return Diagnosis(code=code, cause=reason, remedy=remedy)
