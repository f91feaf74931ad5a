"""Co-residency: which of the servers that come and go may be up at once, by what they take. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from launcher.ir.plan import DevicePlan, Residency, ResidentSet, ServerPlan
from launcher.ir.settings import RAM
from launcher.plan.memory import Part, add_up

Step = Literal["decide", "leave out", "forget"]
"""What is done about a server: take it if it fits, then do without it, then forget that it was left out."""
STEPS = 20_000
"""Choices that are tried at most; beyond, the table is cut and says so."""
ROWS = 64
"""Sets in a table at most."""


def residency(
    servers: Sequence[ServerPlan],
    devices: Sequence[DevicePlan],
    *,
    standing: dict[str, int],
    pooled: frozenset[str] = frozenset(),
) -> Residency | None:
    """The table of one host; None where nothing comes and goes.

    Always up are the servers that start at boot and take no turns, and what takes `standing` bytes of each device
    beside them; `pooled` are GPUs that use RAM. Each other server is in every set that it fits into; a set is whole:
    nothing more fits. Sizes are peaks with file pages, each file's counted once. A set that an exclusive group
    forbids is marked, because its sizes alone would allow it.
    """
    always = tuple(s for s in servers if s.starts == "boot" and not s.config.exclusive)
    choices = tuple(s for s in servers if s.starts == "demand" or (s.starts == "boot" and s.config.exclusive))
    if not choices:
        return None
    budgets = {d.name: d.budget_bytes for d in devices}
    search = _Search(choices, _Load(budgets, standing, always, pooled))
    sets = [
        ResidentSet(servers=tuple(s.name for s in chosen), bytes=load, allowed=_allowed(chosen))
        for chosen, load in search.sets()
    ]
    sets.sort(key=lambda found: (-len(found.servers), found.servers))
    return Residency(
        host=devices[0].host,
        always=tuple(s.name for s in always),
        sets=tuple(sets),
        never=tuple(s.name for s in search.never),
        complete=search.complete,
    )


def _allowed(chosen: Iterable[ServerPlan]) -> bool:
    """Whether no two of `chosen` are of one exclusive group."""
    groups = [s.config.exclusive for s in chosen if s.config.exclusive]
    return len(groups) == len(set(groups))


class _Load:
    """What is taken on every device, with servers put in and taken out again."""

    def __init__(
        self,
        budgets: dict[str, int],
        standing: dict[str, int],
        always: Iterable[ServerPlan],
        pooled: frozenset[str] = frozenset(),
    ) -> None:
        """Starts with `always` on top of `standing`."""
        self.budgets = budgets
        self._pooled = pooled
        self.files: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        self.taken: defaultdict[str, int] = defaultdict(int, standing)
        self._known: dict[str, tuple[dict[str, int], dict[tuple[str, str], int]]] = {}
        for server in always:
            self.put(server)

    def _of(self, server: ServerPlan) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """Peak by device, and file pages by device and file, of one server alone."""
        if server.name not in self._known:
            peaks = {m.device: m.peak_bytes for m in add_up(server.parts)}
            peaks[RAM] += sum(size for device, size in peaks.items() if device in self._pooled)
            self._known[server.name] = peaks, _pages(server.parts)
        return self._known[server.name]

    def put(self, server: ServerPlan) -> None:
        """It comes up."""
        peaks, pages = self._of(server)
        for device, size in peaks.items():
            self.taken[device] += size
        for place, size in pages.items():
            sizes = self.files[place]
            self.taken[place[0]] += max(0, size - max(sizes, default=0))
            sizes[size] += 1

    def take(self, server: ServerPlan) -> None:
        """It goes."""
        peaks, pages = self._of(server)
        for device, size in peaks.items():
            self.taken[device] -= size
        for place, size in pages.items():
            sizes = self.files[place]
            sizes[size] -= 1
            if not sizes[size]:
                del sizes[size]
            self.taken[place[0]] -= max(0, size - max(sizes, default=0))

    def totals(self) -> dict[str, int]:
        """Bytes by device: what each takes alone, and each file's pages once."""
        return dict(self.taken)

    def fits(self) -> bool:
        """Whether every budget holds."""
        return all(size <= self.budgets.get(device, 0) for device, size in self.taken.items())

    def would_fit(self, server: ServerPlan) -> bool:
        """Whether every budget would hold with `server`, too."""
        self.put(server)
        fits = self.fits()
        self.take(server)
        return fits


def _pages(parts: Iterable[Part]) -> dict[tuple[str, str], int]:
    """File-backed bytes by device and file."""
    pages: defaultdict[tuple[str, str], int] = defaultdict(int)
    for part in parts:
        if part.file:
            pages[part.device, part.source] += part.file
    return dict(pages)


class _Search:
    """Every whole set: one into which no other server fits. Depth first, taking before leaving out."""

    def __init__(self, choices: Sequence[ServerPlan], load: _Load) -> None:
        """Who does not fit beside those that are always up is in no set."""
        self.never = tuple(s for s in choices if not load.would_fit(s))
        self._choices = tuple(s for s in choices if s not in self.never)
        self._load = load
        self._steps = 0
        self._rows = 0
        self.complete = True

    def sets(self) -> Iterator[tuple[tuple[ServerPlan, ...], dict[str, int]]]:
        """The sets with what they take, those that are always up included.

        Steps are kept in a list, not in calls within calls: there may be thousands of servers.
        """
        chosen: list[ServerPlan] = []
        left: list[ServerPlan] = []
        todo: list[tuple[Step, int]] = [("decide", 0)]
        while todo:
            step, at = todo.pop()
            if step == "forget":
                left.pop()
            elif step == "leave out":
                self._load.take(chosen.pop())
                left.append(self._choices[at])
                todo += [("forget", at), ("decide", at + 1)]
            elif self._spent():
                self.complete = False
            elif at == len(self._choices):
                if chosen and not any(self._load.would_fit(server) for server in left):
                    self._rows += 1
                    yield tuple(chosen), self._load.totals()
            else:
                chosen.append(self._choices[at])
                self._load.put(chosen[-1])
                todo.append(("leave out", at))
                if self._load.fits():
                    todo.append(("decide", at + 1))

    def _spent(self) -> bool:
        """Count a choice; whether there were too many, or sets enough."""
        self._steps += 1
        return self._steps > STEPS or self._rows >= ROWS
