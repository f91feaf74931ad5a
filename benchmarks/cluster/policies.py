"""Who runs where: our runtime, what is up for good, and at most so many of a host.

All but `static` are one mechanism, the runtime's own: `Waker` (single flight, waiters, deadlines) over `Runner`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from benchmarks.cluster.site import Server, Site
from launcher.supervise.room import Room
from launcher.supervise.runner import Runner
from launcher.supervise.scheduler import needs_bytes


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How servers come and go. `homes`: on how many hosts a model has a server."""

    title: str
    homes: int = 1
    pools: bool = False
    """Each host's runtime has a warm pool."""
    static: bool = False
    """What is up is decided beforehand, knowing what will be asked for most."""
    counts: Literal["", "safe", "usual"] = ""
    """How somebody sets the number of servers that a host may have up; "": as many as its memory holds."""
    one_runtime: bool = False
    """One for all hosts, as in a cluster of Kubernetes; else one a host."""


class Counted(Room):
    """At most `most` servers at a time: of the idle ones the least recently used goes, whatever it takes."""

    def __init__(self, runners: Mapping[str, Runner], most: int) -> None:
        """Keeps references only."""
        super().__init__(runners, {}, dict)
        self._most = most

    async def _made(self, runner: Runner) -> bool:
        """See `Room`."""
        while True:
            others = [r for r in self._runners.values() if r is not runner and (r.life.alive or r.life.wanted)]
            if len(others) < self._most:
                return True
            idle = [r for r in others if r.life.usable and not r.busy]
            if not idle:
                return False
            going = min(idle, key=lambda r: (r.last_used, r.name))
            going.stop("evicted")
            await going.until("stopped", "failed")


def safe_count(site: Site, host: str) -> int:
    """How many servers may be up on a host so that the largest of it fit together."""
    return _fitting(site, sorted(_sizes(site, host), reverse=True), host)


def usual_count(site: Site, host: str) -> int:
    """How many of the host's mean size fit: what somebody would set who goes by the mean."""
    sizes = _sizes(site, host)
    return max(1, int(_room(site, host) // (sum(sizes) / len(sizes))))


def counted(site: Site, policy: Policy) -> dict[str, int]:
    """How many servers each host may have up; none where bytes decide."""
    count = {"safe": safe_count, "usual": usual_count}.get(policy.counts)
    return {} if count is None else {host: count(site, host) for host in site.hosts}


def always_up(site: Site, ranks: Sequence[str]) -> tuple[Server, ...]:
    """The models that are asked for most, each on the host with most room, until none fits."""
    free = {host: _room(site, host) for host in site.hosts}
    by_model: dict[str, Server] = {}
    for server in site.servers:
        by_model.setdefault(server.model, server)
    chosen: list[Server] = []
    for model in ranks:
        server = by_model[model]
        host = max(free, key=lambda name: (free[name], name))
        if (size := _card(server)) <= free[host]:
            free[host] -= size
            chosen.append(_moved(server, host))
    return tuple(chosen)


def _moved(server: Server, host: str) -> Server:
    """`server` on another host, always on."""
    needs = tuple(msgspec.structs.replace(n, device=n.device.replace(server.host, host, 1)) for n in server.unit.memory)
    return msgspec.structs.replace(
        server, host=host, unit=msgspec.structs.replace(server.unit, memory=needs, start="boot")
    )


def _room(site: Site, host: str) -> int:
    return site.budgets[f"{host}/cuda0"]


def _card(server: Server) -> int:
    """Bytes of its host's card."""
    return needs_bytes(server.unit.memory)[f"{server.host}/cuda0"]


def _sizes(site: Site, host: str) -> list[int]:
    return [_card(server) for server in site.of_host(host)]


def _fitting(site: Site, sizes: Sequence[int], host: str) -> int:
    """How many of `sizes`, in order, fit together."""
    room, count = _room(site, host), 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        count += 1
    return max(1, count)
