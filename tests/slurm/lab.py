"""A real Slurm of two nodes on this machine: Debian's packages unpacked in a folder, a controller, two slurmd, munge.

Nothing is installed, and no process but ours is touched. The nodes share the machine and its loopback address.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_port

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NODES = ("alpha", "beta")
MEMORY_MIB = 16_000
CPUS = 16
_UP_S = 120.0
_POLL_S = 0.1

_CONF = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={work}/munge.sock
CredType=cred/munge
PluginDir={plugins}
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile={work}/ctld.pid
SlurmdPidFile={work}/%n.pid
SlurmctldLogFile={work}/ctld.log
SlurmdLogFile={work}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=1
SlurmdTimeout=20
KillWait=5
MinJobAge=300
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PreemptMode=OFF
"""


def fetched() -> Path:
    """A folder with Debian's packages of Slurm unpacked, kept in the virtual environment. Raises RuntimeError."""
    folder = Path(sys.prefix) / "slurm"
    if (folder / "done").exists():
        return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RuntimeError("Slurm is fetched as Debian's packages, and there is no apt-get")
    shutil.rmtree(folder, ignore_errors=True)
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    options = ("-qq", "-y", "--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={archives}")
    for words in (("update", "-qq"), ("install", *options, *PACKAGES)):
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"apt-get {words[0]}: {done.stderr[-1000:]}")
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder], check=True, capture_output=True)
    shutil.rmtree(archives)
    (folder / "done").touch()
    return folder


class Lab:
    """The cluster, up when this is made. Raises RuntimeError."""

    def __init__(self, work: Path) -> None:
        """`work`: an empty folder of its own."""
        self.work = work
        self._root = fetched()
        libraries = next(self._root.glob("usr/lib/*-linux-gnu"))
        self._plugins = libraries / "slurm-wlm"
        folders = ("usr/bin", "usr/sbin")
        self.env = {
            "PATH": ":".join([*(str(self._root / f) for f in folders), os.environ.get("PATH", "/usr/bin:/bin")]),
            "LD_LIBRARY_PATH": f"{self._plugins}:{libraries}",
            "SLURM_CONF": str(work / "slurm.conf"),
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name == "LAUNCH_TEST_MARK"},
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._munge()
            self._configure()
            self._begin("slurmctld", self._daemon("slurmctld"), "-D")
            for node in NODES:
                self.power_on(node)
            self.until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "both nodes idle")
        except BaseException:
            self.close()
            raise

    def run(self, *words: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout if done.returncode == 0 else done.stderr

    def states(self) -> dict[str, str]:
        """By node: what sinfo says of it; empty while nobody answers."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        pairs = [line.split() for line in lines]
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in NODES}

    def jobs(self) -> list[dict[str, str]]:
        """The jobs of the queue that are not over."""
        rows = self.run("squeue", "--noheader", "--format=%A|%T|%N|%j|%k|%r").splitlines()
        keys = ("id", "state", "node", "name", "server", "why")
        return [dict(zip(keys, row.split("|"), strict=True)) for row in rows]

    def job_of(self, server: str) -> dict[str, str] | None:
        """The job of `server`."""
        return next((job for job in self.jobs() if job["server"] == server), None)

    def power_on(self, node: str) -> None:
        """Start a node's daemon."""
        (self.work / f"spool-{node}").mkdir(exist_ok=True)
        self._begin(node, self._daemon("slurmd"), "-D", "-N", node, "-d", str(self._daemon("slurmstepd")))

    def power_off(self, node: str) -> None:
        """Kill a node's daemon and all that its jobs run, as when its power is cut."""
        daemon = self._running.pop(node)
        spool = str(self.work / f"spool-{node}")
        daemon.kill()
        daemon.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                keeper = process.name() == "slurmstepd" and any(spool in word for word in process.cmdline())
                if keeper or (process.environ().get("SLURMD_NODENAME") == node and self._is_ours(process)):
                    process.kill()

    def _daemon(self, name: str) -> Path:
        """Debian's alternative of that name (`slurmd-wlm`)."""
        return min(self._root.glob(f"usr/sbin/{name}*"))

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == self.env["SLURM_CONF"]

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = _UP_S) -> Any:
        """Wait until `holds()`; what it gives."""
        limit = time.monotonic() + timeout_s
        while not (found := holds()):
            if time.monotonic() > limit:
                raise RuntimeError(f"not {what} in {timeout_s:g} s\n{self._said()}")
            time.sleep(_POLL_S)
        return found

    def close(self) -> None:
        """Cancel what runs, end the daemons, and whatever is left of their jobs."""
        if "slurmctld" in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                self.run("scancel", "--quiet", "--user", getpass.getuser(), check=False)
                limit = time.monotonic() + 30
                while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < limit:
                    time.sleep(_POLL_S)
        for daemon in reversed(self._running.values()):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and "SLURM_JOB_ID" in process.environ() and self._is_ours(process):
                    process.kill()

    def _munge(self) -> None:
        key = self.work / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.work / "munge.sock", "pid-file": self.work / "munge.pid"}
        files |= {"log-file": self.work / "munge.log", "seed-file": self.work / "munge.seed"}
        words = [f"--{name}={path}" for name, path in files.items()]
        self._begin("munged", self._root / "usr/sbin/munged", "--foreground", "--force", *words)
        self.until((self.work / "munge.sock").exists, "munged up")

    def _configure(self) -> None:
        (self.work / "state").mkdir()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={free_port()} CPUs={CPUS} "
            f"RealMemory={MEMORY_MIB} State=UNKNOWN"
            for node in NODES
        )
        values = {"user": getpass.getuser(), "work": self.work, "plugins": self._plugins, "port": free_port()}
        (self.work / "slurm.conf").write_text(_CONF.format(**values, nodes=nodes, names=",".join(NODES)))

    def _begin(self, name: str, program: Path, *words: str) -> None:
        with (self.work / f"{name}.out").open("ab") as out:
            self._running[name] = subprocess.Popen(
                [program, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _said(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted({*self.work.glob("*.log"), *self.work.glob("*.out")})
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)
