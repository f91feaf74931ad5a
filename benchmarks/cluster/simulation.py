"""One load on one policy, in simulated time: the front's and the runtime's own decisions over simulated processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from benchmarks.cluster.hosts import Hosts
from benchmarks.cluster.load import Ask, Outage
from benchmarks.cluster.policies import Counted, Policy, always_up, counted
from benchmarks.cluster.site import Server, Site
from launcher.ir.fleet import RouteTarget
from launcher.ir.live import ServerState, UnavailableError
from launcher.route.problem import HttpError
from launcher.route.target import Target, choose, why_none
from launcher.supervise import events
from launcher.supervise.runner import SharedContext
from launcher.supervise.spec import process_specs
from launcher.supervise.waker import Waker
from tests.supervise.conftest import manifest
from tests.supervise.simulated import Simulated, SimulatedLoop

TIMEOUT_S = 60.0
"""How long a request waits for a server and a slot (`queue_timeout_s`)."""
WARM_UP_S = 600.0
"""Requests of the beginning, when everything is empty, are not counted."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests that are counted; `waits`: seconds of each that was answered, in order of size."""

    asked: int
    said: dict[str, int]
    """Answered ("") or the type of the error."""
    at_once: int
    """Answered by a server that was up when they came."""
    waits: tuple[float, ...]
    loads: int
    from_disk: int
    swaps: int
    """Servers that had to go for another."""
    out_of_memory: int

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return self.said.get("", 0)

    def wait_s(self, share: float) -> float:
        """What this share of the answered requests waited at most."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))] if self.waits else 0.0


class Fleet:
    """Hosts, their runtimes, and a front, in a simulated loop."""

    def __init__(self, site: Site, policy: Policy, ranks: Sequence[str], failing: Iterable[Outage]) -> None:
        """Nothing runs."""
        self._loop = asyncio.get_running_loop()
        if policy.static:
            site = msgspec.structs.replace(site, servers=always_up(site, ranks))
        self.hosts = Hosts(site, failing, self._loop, pools=policy.pools, overcommits=policy.counts != "")
        self.evicted = 0
        self._asked: list[Ask] = []
        """Requests that ended, and of each what came of it, whether at once, and what it waited."""
        self._said: list[tuple[str, bool, float]] = []
        self._policy, self._site = policy, site
        self._wakers: dict[str, Waker] = {}
        self._runners: dict[str, Simulated] = {}
        self._targets: dict[str, list[Target]] = {}
        counts = counted(site, policy)
        groups = {"": site.servers} if policy.one_runtime else {host: site.of_host(host) for host in site.hosts}
        for host, servers in groups.items():
            self._add_runtime(servers, counts.get(host, 0))
        for targets in self._targets.values():
            targets.sort(key=lambda target: target.name)  # its first home is asked first

    def _add_runtime(self, servers: Sequence[Server], most: int) -> None:
        """A runtime with these servers, and what the front knows of them."""
        shared = SharedContext(
            deployment="simulated", input_digest="", state_dir=Path(), owner=cast("Any", None), emit=self._hear
        )
        fleet = manifest(*(server.unit for server in servers))
        runners = {n: Simulated(spec, shared, self.hosts) for n, spec in process_specs(fleet).items()}
        waker = Waker(runners, self._site.budgets, TIMEOUT_S, dict)
        if most:
            waker.room = Counted(runners, most)
        for server in servers:
            self.hosts.add(runners[server.name])
            self._targets.setdefault(server.model, []).append(_target(server))
            self._wakers[server.name] = waker
        self._runners |= runners

    def _hear(self, event: events.AnyEvent) -> None:
        if isinstance(event, events.ServerStopping) and event.why == "evicted":
            self.evicted += 1
        elif isinstance(event, events.ServerStopped | events.ServerFailed):
            self.hosts.ended(event.name)

    def _begin(self) -> None:
        """Start what is always up."""
        for runner in self._runners.values():
            if runner.spec.unit.start == "boot":
                runner.start()

    async def ask(self, ask: Ask) -> None:
        """A request from its beginning to its end."""
        try:
            said, at_once = await self._answer(ask)
        except HttpError as error:
            said, at_once = error.code, False
        self._said.append((said, at_once, self._loop.time() - ask.at - (ask.busy_s if not said else 0.0)))
        self._asked.append(ask)

    async def _answer(self, ask: Ask) -> tuple[str, bool]:
        """As the front does it: a server, the next where that one cannot be had. Raises HttpError for nobody."""
        targets = self._targets.get(ask.model, [])
        left, failure = list(targets), None
        while (target := choose(left, self._state)) is not None:
            left.remove(target)
            try:
                return await self._answer_of(target, ask)
            except UnavailableError as error:
                failure = HttpError(503, error.code, error.message)
        raise failure or why_none(targets, self._state, self._loop.time())

    async def _answer_of(self, target: Target, ask: Ask) -> tuple[str, bool]:
        """A lease on a server, a slot of it, its answer. Raises UnavailableError and HttpError."""
        at_once = self._runners[target.name].life.usable
        begun = self._loop.time()
        lease = await self._wakers[target.name].acquire(target.name, TIMEOUT_S)
        try:
            left_s = TIMEOUT_S - (self._loop.time() - begun)
            await target.gate.acquire(queue_size=1000, timeout_s=max(0.001, left_s))
            try:
                granted = self._loop.time()
                await asyncio.sleep(ask.busy_s)
                host = self.hosts.servers[target.name].host
                cut = self.hosts.is_away(host, granted, self._loop.time())
            finally:
                target.gate.release()
        finally:
            lease.release(ok=True)
        return ("upstream_ended", False) if cut else ("", at_once)

    def _state(self, name: str) -> ServerState:
        return self._runners[name].routing_state

    async def play(self, asks: Iterable[Ask], warm_up_s: float) -> Outcome:
        """Every request at its time, and to its end; those of the first `warm_up_s` are not counted."""
        self._begin()
        running: set[asyncio.Task[None]] = set()
        for ask in asks:
            await asyncio.sleep(ask.at - self._loop.time())
            task = asyncio.create_task(self.ask(ask))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return self._outcome(warm_up_s)

    def _outcome(self, warm_up_s: float) -> Outcome:
        """Of those that came after the beginning."""
        counted = [s for s, ask in zip(self._said, self._asked, strict=True) if ask.at >= warm_up_s]
        return Outcome(
            asked=len(counted),
            said=dict(sorted(Counter(said for said, _, _ in counted).items())),
            at_once=sum(at_once for _, at_once, _ in counted),
            waits=tuple(sorted(max(0.0, round(wait, 6)) for said, _, wait in counted if not said)),
            loads=self.hosts.loads,
            from_disk=self.hosts.from_disk,
            swaps=self.evicted,
            out_of_memory=self.hosts.out_of_memory,
        )

    async def end(self) -> None:
        """Stop everything."""
        for waker in dict.fromkeys(self._wakers.values()):
            await waker.close()
        for runner in self._runners.values():
            runner.mark("closed", on=True)
            runner.stop("stop", force=True)


def _target(server: Server) -> Target:
    """A server as the front knows it."""
    unit = server.unit
    return Target(
        RouteTarget(
            name=server.name,
            host=unit.host,
            port=unit.port,
            slots=unit.slots,
            n_ctx_per_slot=unit.n_ctx_per_slot,
            model=server.model,
            roles=(),
            aliases=(),
            start="boot" if unit.start == "boot" else "demand",
            exclusive=None,
            request_timeout_s=unit.request_timeout_s,
            request_defaults={},
            embedding=False,
            modalities=("text",),
        )
    )


def played(
    site: Site,
    policy: Policy,
    asks: Iterable[Ask],
    failing: Iterable[Outage],
    ranks: Sequence[str],
    *,
    warm_up_s: float = WARM_UP_S,
) -> Outcome:
    """`asks` while hosts fail, under one policy; the same each time. AssertionError where what must hold does not."""
    broken: list[BaseException] = []
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:

        async def main() -> Outcome:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(
                lambda _, said: broken.append(said.get("exception") or RuntimeError(said["message"]))
            )
            fleet = Fleet(site, policy, ranks, failing)
            outcome = await fleet.play(asks, warm_up_s)
            await fleet.end()
            return outcome

        outcome = runner.run(main())
    if broken:
        raise broken[0]  # a timer's: nobody waits for it
    return outcome
