"""Processes of ours that run and that no runner has: left by an earlier runtime, or started behind ours. I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from launcher.supervise import events, procfs
from launcher.supervise.identity import Rejected, ServerRecord, completed
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.runner import Runner
from launcher.supervise.spec import ProcessSpec

Rivals = Callable[[Runner], Iterable[Runner]]
"""The members of a runner's exclusive group that run or will run again."""

Emit = Callable[[events.AnyEvent], None]


async def take_over(
    owner: ProcessOwner, specs: Mapping[str, ProcessSpec], runners: Mapping[str, Runner], rivals: Rivals, emit: Emit
) -> tuple[Rejected, ...]:
    """Adopt what an earlier runtime left and what is as compiled; end the rest of it. Gives what is not ours."""
    records, rejected = await owner.living(specs)
    left = []
    for record in records:
        runner = runners.get(record.name)
        if runner is None or runner.life.alive or not _adopted(runner, record, rivals):
            left.append(record)
    await _end(owner, left, emit, "changed")
    return tuple(rejected)


async def look_behind(
    owner: ProcessOwner, specs: Mapping[str, ProcessSpec], runners: Mapping[str, Runner], rivals: Rivals, emit: Emit
) -> None:
    """Adopt what somebody else started since (`systemctl start`); end it where one of ours runs in its place.

    What changes while the owner is asked is left for the next look.
    """
    before = {name: (runner.life.alive, runner.pid) for name, runner in runners.items()}
    records, _ = await owner.living(specs)
    left = []
    for record in records:
        runner = runners.get(record.name)
        if runner is None or runner.life.closed or before.get(record.name) != (runner.life.alive, runner.pid):
            continue
        if owner.local and procfs.proc_stat(record.pid) is None:
            continue
        if not runner.life.alive:
            if not _adopted(runner, record, rivals, by_hand=True):
                left.append(record)
        elif runner.pid not in (None, record.pid) and procfs.proc_stat(runner.pid or 0) is not None:
            left.append(record)
    await _end(owner, left, emit, "by_hand")


def _adopted(runner: Runner, record: ServerRecord, rivals: Rivals, *, by_hand: bool = False) -> bool:
    """Whether the process of `record` is `runner`'s from now on: it may run, and nothing runs in its place."""
    if runner.spec.unit.start == "never" or tuple(rivals(runner)):
        return False
    whole = completed(record, runner.spec)
    return runner.fallbacks.adopt(whole.argv) and runner.adopt(whole, by_hand=by_hand)


async def _end(owner: ProcessOwner, records: Sequence[ServerRecord], emit: Emit, why: str) -> None:
    """End what is not wanted, and tell it."""
    for record in records:
        emit(events.ServerStopping(name=record.name, why=why))
    for orphan in await owner.end(records):
        emit(events.ServerStopped(name=orphan.name))
