"""Have systemd check units before they are installed. I/O: runs systemd-analyze."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from launcher.errors import Finding, Severity, fault
from launcher.install.layout import UNIT_FOLDERS, Layout, manifest_of
from launcher.ir.deployment import Deployment

_ABSENT = re.compile(r"Command (\S+) is not executable: No such file or directory")
_EXPOSURE = re.compile(r"^X-Launch-Exposure=([\d.]+)$", re.MULTILINE)
_SOCKET = re.compile(r"^ *--host (/\S+\.sock)", re.MULTILINE)
_LEVEL = re.compile(r"Overall exposure level for .*: ([\d.]+)")


def verify_units(deployment: Deployment, layout: Layout, coming: Collection[Path] = ()) -> tuple[Finding, ...]:
    """Findings if `systemd-analyze verify` prints anything at all, or a sandbox is weaker than its unit claims.

    `coming`: paths (as the machine names them) that the install will write. verify exits 0 for unknown keys, so its
    stderr must be empty. Findings: `install/verify`, `install/exposure`, `install/no-systemd`, `render/socket-folder`.
    """
    folder = UNIT_FOLDERS[layout.scope]
    units = {f.path.rpartition("/")[2]: f.text for f in deployment.files if f.path.startswith(f"{folder}/")}
    if not units:
        return ()
    homeless = tuple(filter(None, (_no_socket_folder(unit, text) for unit, text in units.items())))
    with tempfile.TemporaryDirectory(prefix="launch-verify-") as name:
        directory = Path(name)
        for unit, text in units.items():
            (directory / unit).write_text(text, encoding="utf-8")
        paths = sorted(directory.iterdir())
        try:
            problems = _verify(paths, layout, coming, _optional(deployment))
            return (*homeless, *problems, *_exposed(units, directory, layout))
        except FileNotFoundError:
            message = "systemd-analyze is not installed: units cannot be verified"
            severity: Severity = "error" if layout.root == Path("/") else "warning"
            return (fault("install/no-systemd", "", message, severity=severity),)


def _no_socket_folder(unit: str, text: str) -> Finding | None:
    path = None if "\nRuntimeDirectory=" in text else _SOCKET.search(text)
    if path is None:
        return None
    server = unit.removesuffix(".service")
    message = f"{unit} listens on {path[1]}, and nobody makes a folder for it or removes what a dead server left there"
    note = f"a unix socket of an installed server is below /run: servers.NAME.host=/run/{server}/http.sock"
    return fault("render/socket-folder", "", message, note)


def _optional(deployment: Deployment) -> tuple[str, ...]:
    """Endings of the names of units that may fail without ending the fleet."""
    if (manifest := manifest_of(deployment)) is None:
        return ()
    names = [s.name for s in manifest.servers if not s.fatal] + [s.name for s in manifest.services if not s.fatal]
    return tuple(f"-{name}.service" for name in names)


def _verify(
    paths: Iterable[Path], layout: Layout, coming: Collection[Path], optional: Collection[str]
) -> list[Finding]:
    """A finding for each line that verify prints, except for programs that the install will write."""
    scope = ["--user"] if layout.scope == "user" else []
    # a user's manager wants a runtime directory, and somebody who is not logged in has none
    env = {"XDG_RUNTIME_DIR": tempfile.gettempdir(), **os.environ}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *scope, *paths], capture_output=True, text=True, check=False, env=env
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    problems = [line for line in lines if not _will_be_there(line, layout, coming)]
    if done.returncode and not lines:
        problems = [f"systemd-analyze verify exited with {done.returncode}"]
    return [_finding(line, layout, optional) for line in dict.fromkeys(problems)]


def _finding(line: str, layout: Layout, optional: Collection[str]) -> Finding:
    """The finding for a line: a warning if a program is missing in a tree, or for a unit that may fail.

    It may yet be installed. `optional`: endings of the names of units that may fail.
    """
    unit = line.partition(": ")[0]
    spared = layout.root != Path("/") or unit.endswith(tuple(optional))
    absent = _ABSENT.search(line)
    severity: Severity = "warning" if spared and absent else "error"
    notes: tuple[str, ...] = ()
    if absent:
        key = "deploy.launch" if absent[1].endswith("/launch") else "engines.NAME.binary"
        notes = (f"where it is on this machine is the config's to say: {key}=PATH, then render and install again",)
    if line.startswith("Failed to prepare filename"):
        notes = ("a unit's name has letters, digits and . _ - in it: deploy.unit_prefix, hardware.name, profile.name",)
    return fault("install/verify", "", line, *notes, severity=severity)


def _will_be_there(line: str, layout: Layout, coming: Collection[Path]) -> bool:
    absent = _ABSENT.search(line)
    if absent is None:
        return False
    path = Path(absent[1])
    if not path.is_absolute():  # found by PATH, on the machine where it runs
        return False
    return path in coming or (layout.root != Path("/") and (layout.root / path.relative_to("/")).exists())


def _exposed(units: dict[str, str], directory: Path, layout: Layout) -> list[Finding]:
    """A finding for each unit whose exposure level is above the one that it claims. Users' units claim none."""
    findings = []
    for unit, text in units.items():
        claim = _EXPOSURE.search(text)
        if claim is None or layout.scope == "user" or "NoNewPrivileges=" not in text:
            continue
        argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(directory / unit)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        level = _LEVEL.search(done.stdout)
        if level is None or float(level[1]) > float(claim[1]):
            found = level[1] if level else f"unknown ({done.stderr.strip()})"
            message = f"{unit}: exposure level is {found}, at most {claim[1]} was promised"
            findings.append(fault("install/exposure", "deploy.hardening", message))
    return findings
