"""Running processes of the deployment that no runner has: left by an earlier runtime, or started by others. I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from launcher.base import procfs
from launcher.supervise import events
from launcher.supervise.identity import Rejected, ServerRecord, completed
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.runner import Runner
from launcher.supervise.spec import ProcessSpec


@dataclass(eq=False, frozen=True)
class Strays:
    """Finds processes of `specs` that none of `runners` has; both are live views.

    `rivals`: the members of a runner's exclusive group that run or will run again.
    """

    owner: ProcessOwner
    specs: Mapping[str, ProcessSpec]
    runners: Mapping[str, Runner]
    rivals: Callable[[Runner], Iterable[Runner]]
    emit: Callable[[events.AnyEvent], None]

    async def take_over(self) -> tuple[Rejected, ...]:
        """Adopt processes of an earlier runtime that run as compiled; end its others. Returns untrusted records."""
        records, rejected = await self.owner.living(dict(self.specs))
        left = []
        for record in records:
            runner = self.runners.get(record.name)
            if runner is None or runner.life.alive or not self._adopted(runner, record):
                left.append(record)
        await self._end(left, "changed")
        return tuple(rejected)

    async def adopt_foreign(self) -> None:
        """Adopt processes that others started since (`systemctl start`), or end those that one of ours replaces.

        What changes while the owner is asked is left for the next call.
        """
        before = {name: (runner.life.alive, runner.pid) for name, runner in self.runners.items()}
        records, _ = await self.owner.living(dict(self.specs))
        left = []
        for record in records:
            runner = self.runners.get(record.name)
            if runner is None or runner.life.closed or before.get(record.name) != (runner.life.alive, runner.pid):
                continue
            if self.owner.local and procfs.proc_stat(record.pid) is None:
                continue
            if not runner.life.alive:
                if not self._adopted(runner, record, by_hand=True):
                    left.append(record)
            elif runner.pid not in (None, record.pid) and procfs.proc_stat(runner.pid or 0) is not None:
                left.append(record)
        await self._end(left, "by_hand")

    def _adopted(self, runner: Runner, record: ServerRecord, *, by_hand: bool = False) -> bool:
        """Adopt the process of `record`, if it may run and no rival runs in its place. Returns whether it did."""
        if runner.spec.unit.start == "never" or tuple(self.rivals(runner)):
            return False
        whole = completed(record, runner.spec)
        return runner.fallbacks.adopt(whole.argv) and runner.adopt(whole, by_hand=by_hand)

    async def _end(self, records: Sequence[ServerRecord], why: str) -> None:
        for record in records:
            self.emit(events.ServerStopping(name=record.name, why=why))
        for orphan in await self.owner.end(records):
            self.emit(events.ServerStopped(name=orphan.name))
