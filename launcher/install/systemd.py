"""Run systemctl, for one manager: the machine's, a user's, or the unit files of a tree that is not running."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import SuperviseError
from launcher.install.layout import Layout

_TIMEOUT_S = 3600.0
"""Seconds: loading a fleet of big models may take that long; each unit has its own, shorter limit."""

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
"""A user's name in sysusers.d(5); it cannot be an option of userdel."""
_LOOKS = 10
_LOOK_PAUSE_S = 0.1


class Systemd:
    """The manager that runs what is installed in `layout`; `running` is False for a tree, in which none runs."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.running = layout.root == Path("/")

    def reload(self) -> None:
        """Have systemd read unit files again. Raises SuperviseError if it refuses."""
        self._run_checked(["daemon-reload"])

    def enable(self, units: Sequence[str]) -> None:
        """Have `units` started at boot, without starting them now; works in a tree, too."""
        if not self.running and self._layout.scope == "user":  # systemctl has no --root for users
            for unit in units:
                self._layout.tree.link(self._layout.units / "default.target.wants" / unit, f"../{unit}")
        elif units:
            self._run_checked(["enable", "--quiet", *units])

    def disable(self, units: Sequence[str]) -> None:
        """Undo `enable`; units that do not exist are ignored."""
        if not self.running and self._layout.scope == "user":
            for unit in units:
                self._layout.tree.remove(self._layout.units / "default.target.wants" / unit)
        elif units:
            self._run(["disable", "--quiet", *units])

    def start(self, units: Sequence[str]) -> int:
        """Start `units` and wait. Returns systemctl's exit status, 0 if all were started."""
        return self._run(["start", *units]).returncode if units else 0

    def restart(self, units: Sequence[str]) -> int:
        """Restart `units`, or start them, in the order of their After=, and wait. Returns systemctl's exit status.

        A restart that a user asks for does not count towards the limit of starts (StartLimitBurst=).
        """
        self.forget_failures(units)
        return self._run(["restart", *units]).returncode if units else 0

    def stop(self, units: Sequence[str]) -> int:
        """Stop `units` and wait; forget their failures. Returns systemctl's exit status, 0 if all were stopped."""
        status = self._run(["stop", *units]).returncode if units else 0
        self.forget_failures(units)
        return status

    def forget_failures(self, units: Sequence[str]) -> None:
        """Let `units` be started again that systemd refuses after too many failures (start-limit-hit)."""
        if units:
            self._run(["reset-failed", *units])

    def stop_empty_slices(self, slices: Sequence[str]) -> None:
        """Stop those of `slices` that no loaded unit is in: systemd creates them itself and does not end them."""
        users = {p.get("Slice") for p in self.properties(["*.service", "*.scope", "*.slice"], ("Slice",)).values()}
        self.stop([name for name in slices if name not in users])

    def make_users(self, file: Path) -> None:
        """Create the users that `file` (sysusers.d(5)) names. Raises SuperviseError if that is refused."""
        done = subprocess.run(["systemd-sysusers", file], capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"systemd-sysusers {file} failed: {done.stderr.strip() or done.returncode}"
            raise SuperviseError.of("install/systemctl", message)

    def remove_users(self, file: Path) -> None:
        """Remove the users that `file` names; one who still has processes stays."""
        for line in self._layout.tree.text(file).splitlines():
            user = line.split()[1:2]
            if line.startswith("u ") and user and _USER.fullmatch(user[0]):
                subprocess.run(["userdel", *user], capture_output=True, check=False)

    def clean(self, units: Sequence[str]) -> None:
        """Remove caches, state and credentials that systemd keeps for stopped `units`."""
        for unit in units:
            self._run(["clean", "--what=all", unit])

    def properties(self, units: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Unit → its properties `names`; {} if systemd does not answer."""
        if not units:
            return {}
        done = self._run(["show", f"--property={','.join(('Id', *names))}", *units])
        found: dict[str, dict[str, str]] = {}
        for block in done.stdout.split("\n\n"):
            values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if "Id" in values:
                found[values.pop("Id")] = values
        return found

    def log(self, unit: str, lines: int = 12) -> tuple[str, ...]:
        """The last lines of a unit's journal, without times."""
        argv = [*self.journal([unit], lines), "--output=cat"]
        found: tuple[str, ...] | None = None
        # what a process wrote last comes into the journal after systemd's own word that it ended; --sync does not wait
        for _ in range(_LOOKS):
            before = found
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
            found = tuple(done.stdout.splitlines())
            if found == before:
                break
            time.sleep(_LOOK_PAUSE_S)
        return found or ()

    def journal(self, units: Sequence[str], lines: int) -> list[str]:
        """The command line that prints the last `lines` of the journal of `units`."""
        scope = "--user-unit" if self._layout.scope == "user" else "--unit"
        return ["journalctl", "--no-pager", f"--lines={lines}", *(f"{scope}={unit}" for unit in units)]

    def _run_checked(self, words: Sequence[str]) -> None:
        done = self._run(words)
        if done.returncode:
            message = f"systemctl {words[0]} failed: {done.stderr.strip() or done.returncode}"
            raise SuperviseError.of("install/systemctl", message)

    def _run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        scope = ["--user"] if self._layout.scope == "user" else []
        tree = [] if self.running else [f"--root={self._layout.root}"]
        argv = ["systemctl", "--no-pager", *scope, *tree, *words]
        try:
            return subprocess.run(
                argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=self._env()
            )
        except FileNotFoundError:
            message = "systemctl is not installed: this machine is not run by systemd"
            raise SuperviseError.of("install/no-systemd", message) from None

    def _env(self) -> dict[str, str]:
        """The environment, with XDG_RUNTIME_DIR for a user's manager: `su` and `cron` leave it unset."""
        user = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"} if self._layout.scope == "user" else {}
        return user | dict(os.environ)
