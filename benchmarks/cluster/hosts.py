"""Hosts in simulated time: a card, pages of files in RAM, processes that take their planned time to load; outages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from benchmarks.cluster.load import Outage
from benchmarks.cluster.site import BEGIN_S, CACHE_BYTES, DISK_BYTES_S, END_S, Server, Site
from launcher.ir.config import OrchestrationConfig, WarmPoolConfig
from launcher.ir.fleet import DeviceBudget
from launcher.orchestrate.pool import WarmPool
from launcher.orchestrate.pool_score import FilesInRam
from launcher.supervise.scheduler import needs_bytes
from tests.supervise.conftest import manifest, routes
from tests.supervise.simulated import Simulated, World

_NO_MEMORY_S = 1.0
"""After which a process ends that finds no memory."""


class PageCache:
    """Files in a host's RAM, whole ones: the least recently used goes, one that is locked stays."""

    def __init__(self, capacity: int) -> None:
        """Nothing is read yet."""
        self._capacity = capacity
        self._files: dict[str, int] = {}
        self._locked: set[str] = set()

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def read(self, path: str, size: int) -> None:
        """A file was used; it is in RAM afterwards, if there is room beside what is locked."""
        self._files.pop(path, None)
        free = self._capacity - size - sum(self._files.values())
        for other in [f for f in self._files if f not in self._locked]:
            if free >= 0:
                break
            free += self._files.pop(other)
        if free >= 0:
            self._files[path] = size

    def lock(self, path: str, *, on: bool) -> None:
        """Have a file stay, or not."""
        (self._locked.add if on else self._locked.discard)(path)

    def clear(self) -> None:
        """The host's power was cut."""
        self._files.clear()
        self._locked.clear()


class Pool(WarmPool):
    """The runtime's own pool of one host, which decides as always; what its child process would do is simulated."""

    def __init__(self, servers: Iterable[Server], cache: PageCache, loop: Any) -> None:
        """It may keep as many models as there are, within three quarters of the cache."""
        self._cache, self._loop = cache, loop
        self._sizes = {server.unit.model_path: server.file_bytes for server in servers}
        units = [server.unit for server in servers]
        room = CACHE_BYTES * 3 // 4
        ram = DeviceBudget(name="ram", kind="ram", capacity_bytes=room, budget_bytes=room)
        fleet = manifest(*units, devices=(ram,))
        parts = OrchestrationConfig(
            router="", workers=tuple(u.name for u in units), warm_pool=WarmPoolConfig(models_max=len(units))
        )
        table = msgspec.structs.replace(routes(fleet, 1), orchestration=parts)
        super().__init__(fleet, table, available=dict)
        self._child = cast("Any", self)  # somebody who takes commands
        self._watch()

    def _command(self, **command: Any) -> None:
        """As the child: look at a file, read and lock it, let it go."""
        if (key := command.get("watch")) is not None:
            self._loop.call_soon(self._tell_of, key)
        elif (key := command.get("hold")) is not None:
            self._loop.call_later(0.0 if key in self._cache else self._sizes[key] / DISK_BYTES_S, self._has_read, key)
        elif (key := command.get("drop")) is not None:
            self._cache.lock(key, on=False)

    def _has_read(self, key: str) -> None:
        if key in self._held:
            self._cache.read(key, self._sizes[key])
            self._cache.lock(key, on=True)
            self._tell_of(key)

    def _tell_of(self, key: str) -> None:
        size = self._sizes[key]
        there = size if key in self._cache else 0
        self._reported(FilesInRam(key=key, resident=there, total=size, locked=there, loading=False, read=0))


class Hosts(World):
    """All hosts. What must hold whenever a process begins: no host's servers take more of a device than it has.

    `overcommits`: where nobody counts bytes, a process that finds no memory ends instead.
    """

    def __init__(self, site: Site, outages: Iterable[Outage], loop: Any, *, pools: bool, overcommits: bool) -> None:
        """Every host is up and empty."""
        super().__init__(0, iter(()))
        self.servers = {server.name: server for server in site.servers}
        self.loads = self.out_of_memory = self.from_disk = 0
        self._budgets: Mapping[str, int] = site.budgets
        self._overcommits = overcommits
        self._loop = loop
        self._away: dict[str, list[Outage]] = {host: [] for host in site.hosts}
        self._caches = {host: PageCache(CACHE_BYTES) for host in site.hosts}
        self.pools = {h: Pool(site.of_host(h), self._caches[h], loop) for h in site.hosts} if pools else {}
        self.there: dict[str, list[Simulated]] = {host: [] for host in site.hosts}
        for outage in outages:
            self._away[outage.host].append(outage)
            loop.call_at(outage.since, self._fail, outage.host)

    def add(self, runner: Simulated) -> None:
        """One of its servers."""
        self.there[self.servers[runner.name].host].append(runner)

    def is_away(self, host: str, since: float, until: float) -> bool:
        """Whether a host failed, or was away, at any time of these."""
        return any(outage.since <= until and since < outage.until for outage in self._away[host])

    def spawn(self, runner: Simulated) -> tuple[bool, float, float]:
        """Reading takes as long as planned, from RAM or disk; on a host that is away it begins with its return."""
        self.spawned += 1
        server, now = self.servers[runner.name], self._loop.time()
        if not self._fits(server.host):
            if not self._overcommits:
                raise AssertionError(f"more memory than {server.host} has: {runner.name} was started")
            self.out_of_memory += 1
            return False, _NO_MEMORY_S, END_S
        self.loads += 1
        cache, path = self._caches[server.host], server.unit.model_path
        warm = path in cache
        self.from_disk += not warm
        cache.read(path, server.file_bytes)
        if self.pools:
            self.pools[server.host].started(server.name)
        back = next((o.until for o in self._away[server.host] if o.since <= now < o.until), now)
        return True, back - now + BEGIN_S + (server.ram_s if warm else server.disk_s), END_S

    def ended(self, name: str) -> None:
        """A process is gone, or given up."""
        if self.pools:
            self.pools[self.servers[name].host].ended(name)

    def _fits(self, host: str) -> bool:
        """Whether what exists on a host is within its devices."""
        taken: dict[str, int] = {}
        alive = (needs_bytes(r.spec.unit.memory).items() for r in self.there[host] if r.exists)
        for device, size in itertools.chain.from_iterable(alive):
            taken[device] = taken.get(device, 0) + size
        return all(size <= self._budgets[device] for device, size in taken.items())

    def _fail(self, host: str) -> None:
        """All that runs there is gone."""
        self._caches[host].clear()
        for runner in self.there[host]:
            runner.crash()
