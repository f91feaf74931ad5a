"""What the runtime may ask of whoever owns the processes: its children, systemd's units, pods, or jobs. Pure types.

The runtime decides (wake, swap, evict, degrade, reload) and acts through `ProcessOwner`; nothing above it knows which
of the four it has. All calls are made in the runtime's event loop, and none of them waits but the `async` ones.
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
    """How a process ended. `code` is negative for a signal, None where nobody knows.

    `tail`: the last lines of its log. `oom_killed`: the kernel ended it for want of memory, or ended something of ours
    meanwhile. `refused`: it never ran, and why.
    """

    code: int | None
    tail: tuple[str, ...] = ()
    oom_killed: bool = False
    refused: Diagnosis | None = None


class RefusedError(Exception):
    """A process cannot be started; nothing runs."""

    def __init__(self, why: Diagnosis) -> None:
        super().__init__(why.cause)
        self.why = why


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one process that was ended. `survived`: not even SIGKILL ended it in time."""

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
        """Its main process; 0 until it is `started`, and always of one on another machine."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port where it listens, once it is `started`; None: where its spec says."""

    @property
    def waits(self) -> bool:
        """Whether it has yet to be given a place to run at, so that the time that its start may take has not begun."""

    async def started(self) -> int:
        """Wait until there is a process, which at once there may be; its pid. Cancelled when it never comes to be."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it by force."""

    def release(self) -> None:
        """Stop watching; the process itself is left alone."""

    async def log_mark(self) -> object:
        """Something that differs when it wrote to its log since."""


class ProcessOwner(Protocol):
    """Starts, finds, ends and measures the processes of one deployment.

    The methods with a default do nothing for processes that a scheduler, or systemd, looks after itself.
    """

    manager: Manager
    outlives: bool
    """Whether processes are meant to run on when the runtime is told to end by a signal."""
    local: bool
    """Whether they run on this machine, which can be asked about them."""

    @property
    def log_dir(self) -> Path | None:
        """Where the log of each, `NAME.log`, is written; None where they are in the journal."""

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord, watcher: Watcher) -> OwnedProcess:
        """Start `spec`, which is fallback `level` of what was planned, 0 for that itself. Raises RefusedError."""

    def adopt(self, record: ServerRecord, watcher: Watcher) -> OwnedProcess | None:
        """The living process of `record`; None when it is gone, or another one has its pid."""

    def keep(self, record: ServerRecord) -> None:
        """Remember what is known of a process for the next runtime, as far as the disk allows."""
        del record

    def forget(self, name: str) -> None:
        """The process of `name` has ended."""
        del name

    def heal(self) -> tuple[str, ...]:
        """Write and remove what the disk refused before; what it refuses still, for people."""
        return ()

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """What runs of this deployment, and the claims about it that cannot be trusted, which are dropped."""

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """End these processes and wait."""

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """Remove what processes of `specs`, of which none lives, left behind (containers without their client)."""
        del specs

    async def trim_log(self, name: str) -> None:
        """Keep the log of `name` below its limit."""
        del name

    def pss_bytes(self, pid: int) -> int | None:
        """RAM of our process `pid`, shared pages divided where that is known; None where nobody says. Blocks."""
        del pid
        return None
