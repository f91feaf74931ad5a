"""A real systemd, booted for a test: an overlay of this machine's root, its own namespaces, nothing outside touched.

As root, without systemd being PID 1 (design: DEPLOY "A real systemd manager boots in tests"). The host lives in mount,
PID, network, UTS and IPC namespaces of its own (systemd-nspawn), and in cgroup directories that are removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_S = 90.0
_POLL_S = 0.1

_SETUP = """
mount --make-rprivate /
mkdir -p {work} && mount -t tmpfs host {work} && mkdir {work}/upper {work}/work {work}/root
mount -t overlay host -o lowerdir=/,upperdir={work}/upper,workdir={work}/work {work}/root
head -c16 /dev/urandom | od -An -tx1 | tr -d ' \\n' > {work}/root/etc/machine-id
echo {name} > {work}/root/etc/hostname
rm -rf {work}/root/etc/systemd/system/*.wants {work}/root/var/log/journal
mkdir -p {work}/root/srv {work}/root/var/log/journal
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_LOG_LEVEL=warning systemd-nspawn --quiet \
    --directory={work}/root --machine={name} --boot --register=no --keep-unit --console=pipe {network} {binds} \
    systemd.unit=basic.target
"""


class BootedHost:
    """One host: boots on entry, is powered off at the end of the block; its root is a throw-away copy of ours."""

    def __init__(self, *, network: str = "--private-network", binds: Mapping[str, Path | str] | None = None) -> None:
        """`binds`: path on the host → directory of this machine that is read-only there.

        Whatever of ours lies below /tmp, /run or a home is otherwise out of the host's, or its units', sight.
        """
        self.name = f"launch-{uuid.uuid4().hex[:8]}"
        self._network = network
        self._binds = shlex.join(f"--bind-ro={ours}:{theirs}" for theirs, ours in (binds or {}).items())
        self._cgroups = [d / self.name for d in _hierarchies()]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._log = Path(f"/tmp/{self.name}.log")
        self.leader = 0
        """Process id of the host's PID 1, as seen from here."""

    def __enter__(self) -> Self:
        try:
            for directory in self._cgroups:
                directory.mkdir()
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """The host's file system, as seen from here."""
        return Path(f"/proc/{self.leader}/root")

    def run(
        self, *argv: str | Path, check: bool = True, timeout_s: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on the host as root. CalledProcessError (with what it said) when it fails and `check`."""
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment(env)
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(map(str, argv))}: rc {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def command(self, *argv: str | Path) -> list[str]:
        """`argv` as a command line of this machine that runs on the host."""
        spaces = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        return ["nsenter", "-t", str(self.leader), *spaces, "--", *map(str, argv)]

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", unit, f"--property={','.join(names)}").stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def main_pid(self, unit: str) -> int:
        """The unit's main process, by the host's own numbers; 0 when none runs."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def journal(self, unit: str) -> str:
        """What the unit's processes and systemd said about it."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, check=False).stdout

    def wait_said(self, unit: str, text: str, timeout_s: float = 90) -> None:
        """Wait until `text` is in the unit's journal, which hears of an end before it hears the last words."""
        began = time.monotonic()
        while text not in (journal := self.journal(unit)):
            assert time.monotonic() - began < timeout_s, f"{unit} never said {text!r}:\n{journal[-3000:]}"
            time.sleep(_POLL_S)

    def wait_state(self, unit: str, state: str, timeout_s: float = 90) -> float:
        """Wait until ActiveState of `unit` is `state`; seconds it took. Fails with the journal."""
        began = time.monotonic()
        while (now := self.show(unit, "ActiveState")["ActiveState"]) != state:
            if time.monotonic() - began > timeout_s:
                raise AssertionError(f"{unit} is {now}, not {state}:\n{self.journal(unit)[-3000:]}")
            time.sleep(_POLL_S)
        return time.monotonic() - began

    def close(self) -> None:
        """Power off; kill what is left; remove the cgroup directories."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                if self.leader:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.leader, signal.SIGKILL)
                self._nspawn.kill()
                self._nspawn.wait()
        for directory in self._cgroups:
            _remove(directory)
        self._log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what its own namespace had mounted there
            Path(f"/run/{self.name}").rmdir()

    def _boot(self) -> None:
        """Start PID 1 and wait until it answers. RuntimeError with its console when it does not."""
        enter = "".join(f"echo $$ > {d}/cgroup.procs; " for d in self._cgroups)
        setup = _SETUP.format(work=f"/run/{self.name}", name=self.name, network=self._network, binds=self._binds)
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                ["sh", "-ec", f"{enter} exec unshare --mount sh -ec {shlex.quote(setup)}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(None),
            )
        deadline = time.monotonic() + _BOOT_S
        while not self._is_up():
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no systemd came up: {self._log.read_text(errors='replace')[-1500:].strip()}")
            time.sleep(_POLL_S)

    def _is_up(self) -> bool:
        """Whether PID 1 exists and says that it has booted."""
        if not self.leader:
            self.leader = _child_named(self._nspawn.pid if self._nspawn else 0, "systemd")
        if not self.leader:
            return False
        try:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        except OSError:
            return False
        return state in ("running", "degraded")


def unavailable() -> str:
    """Why no systemd can be booted here ("" where it can). Installs systemd-container where it is missing."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    if shutil.which("systemd-nspawn") is None and shutil.which("apt-get"):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "systemd-container"]):
            subprocess.run(["apt-get", *words], env=env, capture_output=True, check=False)
    missing = [name for name in ("systemd-nspawn", "nsenter", "unshare", "systemctl") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: systemd-container)" if missing else ""


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """A plain environment: nothing of the machine that started the tests, its mark (see `no_orphans`) excepted."""
    mark = {k: v for k, v in os.environ.items() if k == "LAUNCH_TEST_MARK"}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8"} | mark | dict(extra or {})


def _hierarchies() -> tuple[Path, ...]:
    """Roots of the cgroup hierarchies that systemd itself needs: one with v2, two with v1 beside it."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return (_CGROUPS,)
    return tuple(d for d in (_CGROUPS / "systemd", _CGROUPS / "unified") if d.is_dir())


def _child_named(pid: int, name: str) -> int:
    """The child of `pid` whose comm is `name`; 0 when there is none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next((int(c) for c in children if Path(f"/proc/{c}/comm").read_text().strip() == name), 0)
    except OSError:
        return 0


def _remove(directory: Path) -> None:
    """Remove a cgroup directory with all below it, once its processes are gone."""
    deadline = time.monotonic() + 30
    while directory.is_dir():
        for path in sorted(directory.rglob("*"), key=lambda p: -len(p.parts)):
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
        with contextlib.suppress(OSError):
            directory.rmdir()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{directory} is still busy")
        time.sleep(_POLL_S)
