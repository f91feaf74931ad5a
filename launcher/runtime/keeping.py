"""The state directory while a fleet runs: lost files are written again, failures are reported. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.base.locks import LockOwner
from launcher.base.regular import read_regular
from launcher.errors import HostError, LaunchError
from launcher.files import write_atomic, writing
from launcher.files.state import LockHeldError, OwnedLock
from launcher.orchestrate.pool import WarmPool
from launcher.supervise import LOCK_NAME
from launcher.supervise.control import SOCKET_NAME, control_socket, serve_control

_LOG = logging.getLogger("launch.runtime")
_POOL_LOG = logging.getLogger("launch.pool")
LOOK_S = 1.0
PINS_NAME = "pinned.json"
"""Files of models that are pinned in the warm pool, kept across restarts."""


class StateKeeper:
    """The lock, the control socket and the files of one run. All methods are called in its event loop."""

    def __init__(self, state_dir: Path, holder: Callable[[], LockOwner], make: Callable[[], object]) -> None:
        """`holder`: our entry for the lock. `make`: creates the directory, as at the start. Locks nothing yet."""
        self.lock = OwnedLock(state_dir / LOCK_NAME)
        self.problems: tuple[str, ...] = ()
        """What the disk refuses now, as text for people."""
        self._state_dir = state_dir
        self._holder = holder
        self._make = make
        self._files: dict[Path, bytes] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the deployment's lock within the block. Raises HostError where another runtime has it."""
        mine = self._holder()
        try:
            with writing(self.lock.path):
                self.lock.acquire(mine)
        except LockHeldError as error:
            who = f"process {error.owner.pid} ({error.owner.deployment_dir})" if error.owner else "another process"
            note = "`launch status` shows it, `launch reload` changes it, `launch stop --all` ends it"
            message = f"{mine.deployment} is already run by {who}"
            raise HostError.of("supervise/already-running", message, note) from None
        try:
            yield
        finally:
            self.lock.release()

    def update_lock(self) -> None:
        """Write our present entry into the lock; on a disk that takes nothing the old one stays."""
        try:
            self.lock.write_owner(self._holder())
        except OSError as error:
            _LOG.warning("%s is not up to date: %s", self.lock.path, error)

    def remember(self, paths: Iterable[Path]) -> None:
        """Keep the present contents of those of `paths` that are in the state directory."""
        self._files = {}
        for path in paths:
            with contextlib.suppress(OSError):
                if path.is_relative_to(self._state_dir):
                    self._files[path] = read_regular(path)

    async def watch(self, app: Any, heal: Callable[[], tuple[str, ...]]) -> None:
        """Restore what is lost, until cancelled. `app` serves the control socket; `heal` restores files of others."""
        async with contextlib.AsyncExitStack() as doors:
            while True:
                await asyncio.sleep(LOOK_S)
                lost = [*self._lock_again(), *await self._socket_again(app, doors), *self._files_again()]
                trouble = (*lost, *heal())
                for line in trouble:
                    if line not in self.problems:
                        _LOG.warning("%s", line)
                self.problems = trouble

    def _lock_again(self) -> Iterable[str]:
        """Lock again where commands look for it: the old lock may be in a directory that was removed."""
        try:
            if not (self._state_dir / "servers").is_dir():
                self._make()
            if self.lock.is_at_path():
                return ()
            lock = OwnedLock(self.lock.path)
            lock.acquire(self._holder())
        except LockHeldError as error:
            return (f"{error}: two runtimes serve one deployment",)
        except (OSError, LaunchError) as error:
            return (f"the state directory {self._state_dir} is gone and cannot be made: {_reason(error)}",)
        _LOG.warning("%s was gone: it is made again", self._state_dir)
        self.lock.release_lost()
        self.lock = lock
        return ()

    def _has_socket(self) -> bool:
        return os.path.lexists(self._state_dir / SOCKET_NAME)

    async def _socket_again(self, app: Any, doors: contextlib.AsyncExitStack) -> Iterable[str]:
        if self._has_socket():
            return ()
        await doors.aclose()
        try:
            sock = doors.enter_context(control_socket(self._state_dir))
        except OSError as error:
            return (f"the control socket in {self._state_dir} is gone and cannot be made: {_reason(error)}",)
        await doors.enter_async_context(serve_control(app, sock))
        return ()

    def _files_again(self) -> Iterable[str]:
        for path, data in self._files.items():
            try:
                if not os.path.lexists(path):
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_atomic(path, data, mode=0o600)
            except OSError as error:
                return (f"{path} is gone and cannot be written: {_reason(error)}",)
        return ()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def keep_pins(pool: WarmPool, state_dir: Callable[[], Path]) -> None:
    """Let `pool` pin what was pinned when the last run ended, and store its pins from now on."""
    pool.remember_pins(_read_pins(state_dir() / PINS_NAME), functools.partial(_write_pins, state_dir))


def _read_pins(path: Path) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(read_regular(path), type=tuple[str, ...])
    except FileNotFoundError:
        return ()
    except (OSError, *UNREADABLE) as error:
        _POOL_LOG.warning("what was pinned is not known any more: %s: %s", path, error)
        return ()


def _write_pins(state_dir: Callable[[], Path], pinned: Iterable[str]) -> None:
    """Store the pins; if the disk takes nothing, only the next run loses them."""
    path = state_dir() / PINS_NAME
    try:
        write_atomic(path, msgspec.json.encode(sorted(pinned)), mode=0o600)
    except OSError as error:
        _POOL_LOG.warning("what is pinned is not kept: %s: %s", path, error.strerror or error)
