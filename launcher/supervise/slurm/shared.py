"""The directory that fronts and jobs share: the lease of the leading front, and the addresses of jobs. I/O.

A network file system may not answer for minutes: every access has a time limit, and one that is stuck is left alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher.base.decoding import decoded
from launcher.base.locks import try_lock
from launcher.supervise.scheduled import SchedulerError
from launcher.supervise.slurm.queue import Place, place_of

_T = TypeVar("_T")
_LOCK_AGAIN_S = 0.01
_LEASE_BYTES = 1 << 16
PLACES, LOGS, LEASE = "places", "logs", "lease.json"
"""Names in the directory; `launcher.render.jobs` uses the first two."""


class SharedFiles:
    """Accesses files in threads; after one that is stuck, refuses until that is done."""

    def __init__(self, directory: Path, *, limit_s: float) -> None:
        """`directory`: that of the fleet. `limit_s`: seconds for one access."""
        self.directory = directory
        self._limit_s = limit_s
        self._stuck: threading.Thread | None = None

    async def places(self, jobs: Mapping[int, str]) -> dict[int, Place]:
        """Places that `jobs` (server by job id) have written, by job id. Raises SchedulerError."""
        folder = self.directory / PLACES

        def read() -> dict[int, Place]:
            found = {}
            for job, server in jobs.items():
                with contextlib.suppress(OSError):
                    place = place_of((folder / f"{server}.{job}.json").read_bytes())
                    if place is not None:
                        found[job] = place
            return found

        return await self.do(read) if jobs else {}

    def prepare(self) -> None:
        """Create the folders that jobs write to; none but our user may write to them. Blocks; raises OSError."""
        for folder in (self.directory, self.directory / PLACES, self.directory / LOGS):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            facts = folder.stat()
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                raise PermissionError(errno.EPERM, "it is not ours alone to write", str(folder))

    async def forget(self, server: str, jobs: Iterable[int]) -> None:
        """Remove the files that `jobs` of `server`, which are over, have written. Raises SchedulerError."""
        files = [self.directory / PLACES / f"{server}.{job}.json" for job in jobs]

        def remove() -> None:
            for file in files:
                file.unlink(missing_ok=True)

        await self.do(remove)

    async def do(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, run in a thread. Raises SchedulerError when it fails, or takes too long."""
        if self._stuck is not None and self._stuck.is_alive():
            raise SchedulerError(0, f"{self.directory}: the file system does not answer")
        result: concurrent.futures.Future[_T] = concurrent.futures.Future()
        result.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
                result.set_exception(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.wrap_future(result)
        except TimeoutError:
            self._stuck = thread
            raise SchedulerError(0, f"{self.directory}: no answer within {self._limit_s:g} s") from None
        except OSError as error:
            raise SchedulerError(503, f"{error.filename or self.directory}: {error.strerror or error}") from None


class LeaseFile:
    """A lease in a file, with the answers of an API server (`launcher.supervise.scheduled.election.LeaseStore`).

    Each read and each change is made with the file locked (flock), so that a change applies to the version that it
    names. The file system must support such locks across all machines: NFS 4, Lustre (`-o flock`), GPFS, CephFS.
    """

    def __init__(self, files: SharedFiles, *, limit_s: float) -> None:
        self._files = files
        self._path = files.directory / LEASE
        self._limit_s = limit_s

    async def ask(self, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """See `LeaseStore`. `path` is not used: there is one lease."""
        del path
        until = time.monotonic() + self._limit_s
        return await self._files.do(lambda: self._locked(method, body, until))

    def _locked(self, method: str, body: Any, until: float) -> dict[str, Any]:
        """Read the lease; replace it if `body` has the version that was read. Raises OSError, SchedulerError."""
        self._files.prepare()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not try_lock(descriptor):
                if time.monotonic() > until:
                    raise SchedulerError(0, f"{self._path} stays locked")
                time.sleep(_LOCK_AGAIN_S)
            lease = _decoded(os.pread(descriptor, _LEASE_BYTES, 0))
            if method == "GET":
                return lease
            version = lease["metadata"]["resourceVersion"]
            if body["metadata"]["resourceVersion"] != version:
                raise SchedulerError(409, f"{self._path} was changed meanwhile")
            if time.monotonic() > until:
                raise SchedulerError(0, f"{self._path}: too late")
            changed: dict[str, Any] = {**body, "metadata": {"resourceVersion": str(int(version) + 1)}}
            raw = msgspec.json.encode(changed)
            os.pwrite(descriptor, raw, 0)
            os.ftruncate(descriptor, len(raw))
            os.fsync(descriptor)
            return changed
        finally:
            os.close(descriptor)


def _decoded(raw: bytes) -> dict[str, Any]:
    """The lease in `raw`; one without a holder if it is none."""
    lease = decoded(raw, dict[str, Any])
    if lease is not None:
        with contextlib.suppress(LookupError, TypeError, ValueError):
            int(lease["metadata"]["resourceVersion"])
            return lease
    return {"metadata": {"resourceVersion": "0"}}
