"""Interface of the owners of processes: the runtime's children, systemd's units, pods, or Slurm jobs. Pure types.

The runtime decides (wake, swap, evict, degrade, reload) and acts through `ProcessOwner`; no code above it depends on
which of the four it has. All calls are made in the runtime's event loop, and only the `async` ones wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from launcher.ir.live import Manager
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import Rejected, ServerRecord
from launcher.supervise.spec import ProcessSpec


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended. `code` is negative for a signal; None: unknown.

    `tail`: the last lines of its log. `oom_killed`: the kernel has killed a process for want of memory meanwhile, most
    likely this one. `refused`: why it never ran; None: it did.
    """

    code: int | None
    tail: tuple[str, ...] = ()
    oom_killed: bool = False
    refused: Diagnosis | None = None


class RefusedError(Exception):
    """A process cannot be started (`why`); nothing runs."""

    def __init__(self, why: Diagnosis) -> None:
        super().__init__(why.cause)
        self.why = why


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one process that was ended. `survived`: not even SIGKILL ended it in time."""

    name: str
    pid: int
    outcome: Literal["stopped", "killed", "survived"]


class Watcher(NamedTuple):
    """Who hears of the end of a process, in the running loop."""

    on_exit: Callable[[Ending], None]
    """Nothing of it is left, or it could not be started."""
    on_end: Callable[[], None]
    """Its main process has ended; called only where the rest takes a while."""


class OwnedProcess(Protocol):
    """One process that was started or adopted."""

    @property
    def pid(self) -> int:
        """Pid of its main process; 0 until it is `started`, and always 0 on another machine."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port at which it listens, once it is `started`; None: those of its spec."""

    @property
    def waits(self) -> bool:
        """Whether it still waits for a node, so that its start timeout has not begun."""

    async def started(self) -> int:
        """Wait until the process exists; returns its pid. Cancelled when it never comes to exist."""

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""

    def kill(self) -> None:
        """End it by force (SIGKILL)."""

    def release(self) -> None:
        """Stop watching; the process itself is left alone."""

    async def log_mark(self) -> object:
        """A value that changes whenever it has written to its log."""


class ProcessOwner(Protocol):
    """Starts, finds, ends and measures the processes of one deployment.

    The methods with a default do nothing for processes that a scheduler, or systemd, looks after itself.
    """

    manager: Manager
    outlives: bool
    """Whether processes are meant to keep running when a signal ends the runtime."""
    local: bool
    """Whether processes run on this machine, so that /proc shows them."""

    @property
    def log_dir(self) -> Path | None:
        """Where the log of each, `NAME.log`, is written; None where they are in the journal."""

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord, watcher: Watcher) -> OwnedProcess:
        """Start `spec`, which is fallback `level` of the plan (0: the plan itself). Raises RefusedError."""

    def adopt(self, record: ServerRecord, watcher: Watcher) -> OwnedProcess | None:
        """The living process of `record`; None when it is gone, or another one has its pid."""

    def keep(self, record: ServerRecord) -> None:
        """Store the record of a process for the next runtime, as far as the disk allows."""
        del record

    def forget(self, name: str) -> None:
        """Remove the record of `name`, whose process has ended."""
        del name

    def heal(self) -> tuple[str, ...]:
        """Repeat writes and removals that the disk refused. Returns those that still fail, as text for people."""
        return ()

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """The running processes of this deployment, and records that cannot be trusted, which are dropped."""

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """End the processes of `records`, wait, and return the outcome of each."""

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """Remove what processes of `specs` left behind (containers without their client); none of them lives."""
        del specs

    async def trim_log(self, name: str) -> None:
        """Keep the log of `name` below its limit."""
        del name

    def pss_bytes(self, pid: int) -> int | None:
        """RAM of our process `pid`, shared pages divided (PSS) where possible; None: unknown. Blocks."""
        del pid
        return None
