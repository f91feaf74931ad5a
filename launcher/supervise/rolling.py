"""Carry out a reload: what changed is stopped and started again, replicas one after the other. I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec

from launcher.ir.live import UnavailableError
from launcher.supervise.reload import Changes, replicas_of, waves
from launcher.supervise.runner import Runner, SharedContext
from launcher.supervise.spec import ProcessSpec
from launcher.supervise.waker import Waker


@dataclass(eq=False, kw_only=True)
class Rolling:
    """One reload, from `specs` to `new`; `specs` and `runners` are changed in place.

    The caller holds the turns of all exclusive groups involved. `asked`: names that the operator gave; `parallel`:
    limit of parallel starts; `go_on` raises once the fleet is stopping.
    """

    runners: dict[str, Runner]
    specs: dict[str, ProcessSpec]
    new: Mapping[str, ProcessSpec]
    asked: Collection[str]
    shared: SharedContext
    waker: Waker
    parallel: int
    go_on: Callable[[], None]

    async def roll(self, changes: Changes) -> Changes:
        """Carry out `changes`; returns what was really done.

        When a restarted server does not become ready, its replicas in later waves are not restarted: they still serve.
        """
        runners = self.runners
        first, *later = waves(changes.restarted, self.specs, self.new) or ((),)
        for name in {*changes.started, *changes.restarted} & runners.keys():
            runners[name].mark("held", on=False)
        await self._end((*changes.stopped, *first), returning=first)
        self._take_over(changes, later={name for wave in later for name in wave})
        for name in changes.started:
            runners[name].mark("returning", on=True)
        await self._bring_back((*changes.started, *first))
        spared: set[str] = set()
        for wave in later:
            broken = [n for n, r in runners.items() if r.life.state == "failed" and n in changes.restarted]
            going = tuple(name for name in wave if not replicas_of(name, broken, self.new))
            spared |= set(wave) - set(going)
            await self._end(going, returning=going)
            for name in going:
                runners[name].spec = self.new[name]
            await self._bring_back(going)
        spared |= {name for name in changes.restarted if runners[name].life.held}
        states = {name: runner.life.state for name, runner in runners.items()}
        idle = {name for name in changes.started if states.get(name) == "stopped"}
        return msgspec.structs.replace(
            changes,
            started=tuple(n for n in changes.started if n not in idle),
            restarted=tuple(n for n in changes.restarted if n not in spared),
            kept=tuple(sorted({*changes.kept, *spared, *idle})),
            failed=tuple(n for n in (*changes.started, *changes.restarted) if states.get(n) == "failed"),
        )

    async def _end(self, names: tuple[str, ...], *, returning: tuple[str, ...]) -> None:
        """Drain and stop `names`; requests to those that are `returning` wait for them."""
        going = [self.runners[name] for name in names]
        for name in returning:
            self.runners[name].mark("returning", on=True)
        for runner in going:
            runner.mark("draining", on=True)  # at once: no request may meet the new routes with the old process
        await asyncio.gather(*(self.waker.end(runner, "changed") for runner in going))
        self.go_on()

    def _take_over(self, changes: Changes, *, later: Collection[str]) -> None:
        """Replace the specs, except of `later`; removed processes are closed, so no waiting request starts them."""
        for name in changes.stopped:
            self.runners.pop(name).mark("closed", on=True)
        kept = {n: self.specs[n] for n in changes.kept if n not in self.new}
        self.specs.clear()
        self.specs.update({**kept, **self.new})
        for name, spec in self.new.items():
            if spec.unit.builtin:
                continue
            if name not in self.runners:
                self.runners[name] = Runner(spec, self.shared)
            elif name not in later:
                self.runners[name].spec = spec

    async def _bring_back(self, names: tuple[str, ...]) -> None:
        """Start `names`, a few at a time, and wait until each is ready or failed.

        Of an exclusive group only the first is started, and a running member is displaced only by one in `asked`.
        """
        limit = asyncio.Semaphore(self.parallel)
        runners = [self.runners[n] for n in names if n in self.runners]
        first = {(r.spec.unit.exclusive, r.spec.unit.exclusive or r.name): r for r in reversed(runners)}

        async def bring(runner: Runner) -> None:
            async with limit:
                if runner.life.held:  # somebody stopped it meanwhile
                    return
                if self.waker.rivals(runner):
                    if runner.name not in self.asked:
                        return
                    try:
                        await self.waker.clear_group(runner, [])
                    except UnavailableError:  # a process that does not even end by SIGKILL has the device
                        return
                await self.waker.start_in_room(runner)
                await runner.until("ready", "sleeping", "failed", "stopped")

        await asyncio.gather(*(bring(r) for r in runners if r in first.values()))
