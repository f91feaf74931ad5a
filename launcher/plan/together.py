"""Co-residency: which servers and services that come and go may be up at once, by their memory. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from launcher.ir.plan import RAM, DevicePlan, Residency, ResidentSet, ServerPlan, ServicePlan
from launcher.plan.devices import steady, taken_on
from launcher.plan.memory.process import add_up

Step = Literal["decide", "leave out", "forget"]
"""A decision about a server: take it if it fits, then leave it out, then undo that."""
STEPS = 20_000
"""Decisions tried at most; beyond, the table is cut and says so."""
ROWS = 64
"""Sets in a table at most."""


class Member(NamedTuple):
    """A server or service in the table: peak bytes per device, and file pages per device and file."""

    name: str
    group: str | None
    peaks: dict[str, int]
    pages: dict[tuple[str, str], int]


def residency(
    servers: Sequence[ServerPlan],
    services: Sequence[ServicePlan],
    devices: Sequence[DevicePlan],
    *,
    standing: dict[str, int],
    pooled: frozenset[str] = frozenset(),
) -> Residency | None:
    """The table of one host; None where nothing comes and goes.

    Always up are the servers that start at boot and take no turns, and what takes `standing` bytes of each device
    beside them (`steady` services included); `pooled` are GPUs that use RAM. Each other server or service is in every
    set that it fits into; a set is complete: nothing more fits. Sizes are peaks with file pages, each file's counted
    once. A set that an exclusive group forbids is marked, because its sizes alone would allow it.
    """
    budgets = {d.name: d.budget_bytes for d in devices}
    processes: tuple[ServerPlan | ServicePlan, ...] = (*servers, *services)
    choices = [_member(p, budgets, pooled) for p in processes if p.starts != "never" and not steady(p)]
    if not choices:
        return None
    always = [_member(s, budgets, pooled) for s in servers if steady(s)]
    search = _Search(choices, _Load(budgets, standing, always))
    sets = [
        ResidentSet(servers=tuple(s.name for s in chosen), bytes=load, allowed=_allowed(chosen))
        for chosen, load in search.sets()
    ]
    sets.sort(key=lambda found: (-len(found.servers), found.servers))
    return Residency(
        host=devices[0].host,
        always=(*(s.name for s in always), *(s.name for s in services if steady(s))),
        sets=tuple(sets),
        never=tuple(s.name for s in search.never),
        complete=search.complete,
    )


def _member(process: ServerPlan | ServicePlan, devices: Iterable[str], pooled: frozenset[str]) -> Member:
    """The member of a server or service; a GPU's share of RAM counts in RAM, too."""
    pages: defaultdict[tuple[str, str], int] = defaultdict(int)
    if isinstance(process, ServerPlan):
        peaks = {m.device: m.peak_bytes for m in add_up(process.parts)}
        for part in (part for part in process.parts if part.file):
            pages[part.device, part.source] += part.file
    else:
        peaks = {device: taken_on(device, process.config) for device in devices}
    shared = sum(size for device, size in peaks.items() if device in pooled)
    return Member(process.name, process.config.exclusive, peaks | {RAM: peaks.get(RAM, 0) + shared}, pages)


def _allowed(chosen: Iterable[Member]) -> bool:
    groups = [s.group for s in chosen if s.group]
    return len(groups) == len(set(groups))


class _Load:
    """Bytes taken on every device while servers are added and removed."""

    def __init__(self, budgets: dict[str, int], standing: dict[str, int], always: Iterable[Member]) -> None:
        self.budgets = budgets
        self.files: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        self.taken: defaultdict[str, int] = defaultdict(int, standing)
        for member in always:
            self.put(member)

    def put(self, member: Member, times: int = 1) -> None:
        """It comes up, or goes (-1)."""
        for device, size in member.peaks.items():
            self.taken[device] += size * times
        for place, size in member.pages.items():
            sizes = self.files[place]
            before = max(sizes, default=0)
            sizes[size] += times
            if not sizes[size]:
                del sizes[size]
            self.taken[place[0]] += max(sizes, default=0) - before

    def fits(self) -> bool:
        """Whether every budget holds."""
        return all(size <= self.budgets.get(device, 0) for device, size in self.taken.items())

    def would_fit(self, member: Member) -> bool:
        """Whether every budget would hold with `member`, too."""
        self.put(member)
        fits = self.fits()
        self.put(member, -1)
        return fits


class _Search:
    """Every whole set: one into which no other server fits. Depth first, taking before leaving out."""

    def __init__(self, choices: Sequence[Member], load: _Load) -> None:
        self.never = tuple(s for s in choices if not load.would_fit(s))
        self._choices = tuple(s for s in choices if s not in self.never)
        self._load = load
        self._steps = 0
        self._rows = 0
        self.complete = True

    def sets(self) -> Iterator[tuple[tuple[Member, ...], dict[str, int]]]:
        """The sets with what they take, those that are always up included.

        Steps are kept in a list, not in calls within calls: there may be thousands of servers.
        """
        chosen: list[Member] = []
        left: list[Member] = []
        todo: list[tuple[Step, int]] = [("decide", 0)]
        while todo:
            step, at = todo.pop()
            if step == "forget":
                left.pop()
            elif step == "leave out":
                self._load.put(chosen.pop(), -1)
                left.append(self._choices[at])
                todo += [("forget", at), ("decide", at + 1)]
            elif self._spent():
                self.complete = False
            elif at == len(self._choices):
                if chosen and not any(self._load.would_fit(server) for server in left):
                    self._rows += 1
                    yield tuple(chosen), dict(self._load.taken)
            else:
                chosen.append(self._choices[at])
                self._load.put(chosen[-1])
                todo.append(("leave out", at))
                if self._load.fits():
                    todo.append(("decide", at + 1))

    def _spent(self) -> bool:
        self._steps += 1
        return self._steps > STEPS or self._rows >= ROWS
