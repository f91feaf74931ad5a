"""State directories of the runtime, locks that name their holder, and starts under way. I/O.

The kernel drops a lock when its holder dies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from launcher.base.locks import LockOwner, is_locked, try_lock
from launcher.base.names import DEPLOYMENT
from launcher.base.procfs import boot_id
from launcher.base.regular import read_json
from launcher.errors import HostError
from launcher.files.atomic import cannot_read, write_atomic, writing


def state_root(configured: str | None = None, env: Mapping[str, str] | None = None) -> Path:
    """The directory above all deployments' state; not created here.

    First of: `LAUNCH_STATE_DIR`, `configured` (`supervisor.state_dir` of the manifest), systemd's `STATE_DIRECTORY`,
    `$XDG_STATE_HOME/launch`, `~/.local/state/launch`. A relative `XDG_STATE_HOME` is ignored, as its standard asks.
    """
    env = os.environ if env is None else env
    if env.get("LAUNCH_STATE_DIR"):
        return Path(env["LAUNCH_STATE_DIR"]).absolute()
    if configured:
        return Path(configured).expanduser().absolute()
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    xdg = env.get("XDG_STATE_HOME", "")
    if Path(xdg).is_absolute():
        return Path(xdg) / "launch"
    return Path("~/.local/state/launch").expanduser()


def deployment_state_dir(deployment: str, configured: str | None = None, *, create: bool = False) -> Path:
    """State directory of `deployment` under `state_root(configured)`; mode 0700, made when `create`.

    Raises ValueError when `deployment` cannot be a directory name, HostError when it cannot be made.
    """
    if not DEPLOYMENT.fullmatch(deployment):
        raise ValueError(f"not a deployment name: {deployment!r}")
    directory = state_root(configured) / deployment
    if create:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            for part in ("servers", "logs"):
                (directory / part).mkdir(exist_ok=True, mode=0o700)
    return directory


def known_deployments(configured: str | None = None) -> tuple[str, ...]:
    """Names of the deployments with a state directory, sorted; also of one that may not be looked into.

    Raises HostError if the directory above them cannot be read.
    """
    root = state_root(configured)
    try:
        names = [entry.name for entry in os.scandir(root) if DEPLOYMENT.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        note = "whether anything runs is not known"
        raise HostError([cannot_read(root, error.strerror or str(error), note)]) from None
    return tuple(sorted(name for name in names if _has_state(root / name)))


def _has_state(directory: Path) -> bool:
    """Whether a runtime kept state there; True if we may not look."""
    try:
        return (directory / "servers").is_dir()
    except OSError:
        return True


_PAUSES_S = (0.0, 0.025, 0.025, 0.025, 0.025)


class LockHeldError(Exception):
    """Another process holds the lock; `owner` is None if the file does not name it."""

    def __init__(self, path: Path, owner: LockOwner | None) -> None:
        self.path = path
        self.owner = owner
        super().__init__(f"{path} is held by " + (f"process {owner.pid}" if owner else "an unknown process"))


class OwnedLock:
    """An exclusive flock on `path`, held from `acquire` to `release` or to the death of the process."""

    def __init__(self, path: Path) -> None:
        """`path` is created on `acquire`; its directory must exist."""
        self.path = path
        self._fd: int | None = None

    def acquire(self, owner: LockOwner) -> None:
        """Take the lock and write `owner` into it. Raises LockHeldError.

        It is tried for 0.1 s, because a check whether it is held (`runtime_holder`) holds it for an instant.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            if try_lock(descriptor):
                self._fd = descriptor
                self.write_owner(owner)
                return
        os.close(descriptor)
        raise LockHeldError(self.path, read_json(self.path, LockOwner))

    def write_owner(self, owner: LockOwner) -> None:
        """Write another `owner` into the held lock (the file stays: a flock belongs to it)."""
        if self._fd is None:
            raise RuntimeError("the lock is not held")
        text = msgspec.json.encode(owner) + b"\n"
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))
        os.fsync(self._fd)

    def is_at_path(self) -> bool:
        """Whether the held lock's file is still the one at `path`. Raises OSError, but not if that is gone."""
        if self._fd is None:
            return False
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        held = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def release_lost(self) -> None:
        """Release the lock of a file that is no longer at `path`, without changing the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def release(self) -> None:
        """Release the lock, if it is held. The file stays, empty."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
        self.release_lost()


_STARTS = "starting.lock"
_CALLED_OFF = "called-off"


def asked_at_ns() -> int:
    """The time now, in nanoseconds since boot: a change of the clock cannot make an older start look younger."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def start_under_way() -> Iterator[None]:
    """Mark a start as under way within the block, for `call_off`; the kernel drops the mark with the process.

    `up` compiles for a second before its runtime takes the lock. A command that stops everything meanwhile stores a
    time, and a runtime whose start was asked for before that time does not go on. The runtime takes its lock first and
    then looks for the time, the command stores the time first and then looks for locks, so that one of them sees the
    other.
    """
    root = state_root()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(root / _STARTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # it cannot be said; where state can be written no more, the start itself will say so
        yield
        return
    try:
        # shared: several starts at once are several deployments, or else the runtime's lock decides
        try_lock(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


def call_off() -> bool:
    """Call off every start that was asked for before now.

    Returns whether there is one that has not come to its runtime's lock yet.
    """
    root = state_root()
    if not root.is_dir():
        return False
    with contextlib.suppress(OSError):
        write_atomic(root / _CALLED_OFF, f"{boot_id()} {asked_at_ns()}\n", mode=0o600)
    with contextlib.suppress(OSError):
        return is_locked(root / _STARTS, shared=True)
    return False


def is_called_off(asked_ns: int) -> bool:
    """Whether all starts were called off after `asked_ns`, in this boot."""
    try:
        boot, _, stamp = (state_root() / _CALLED_OFF).read_text().strip().partition(" ")
        return boot == boot_id() and int(stamp) > asked_ns
    except (OSError, ValueError):
        return False
