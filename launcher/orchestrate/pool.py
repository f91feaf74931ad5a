"""The warm pool: files of workers that do not run now, kept in RAM so that a swap need not read the disk. I/O.

llama.cpp has no model object to keep in memory: warm means that the file's pages are in the page cache, locked where
the limit allows, within what the plan left free. A child process (`resident.py`) reads, locks and measures; this
object, in the event loop, decides and keeps the state, and never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.errors import SuperviseError, fault
from launcher.ir.config import WarmPoolConfig
from launcher.ir.events import Happened, Kind
from launcher.ir.fleet import FleetManifest, RoutingTable, ServerUnit
from launcher.orchestrate.pool_room import HeldFiles, PoolLimits, pool_moves
from launcher.orchestrate.pool_score import FilesInRam, Score
from launcher.orchestrate.predict import Forecast, Predictor
from launcher.sizes import gib

_LOG = logging.getLogger("launch.pool")
_PROGRAM = Path(__file__).with_name("resident.py")
_CAUSE_BY_HAND = "somebody asked for it"
_AGAIN_S = 5.0
"""Seconds before a child that ended is started again, and between two decisions for changes in free memory."""
Verb = Literal["preload", "pin", "unpin", "evict"]


class WarmPool:
    """One deployment's pool. All methods are called in the event loop."""

    def __init__(
        self,
        manifest: FleetManifest,
        table: RoutingTable,
        *,
        available: Callable[[], Mapping[str, int]],
        emit: Callable[[Happened], None] = lambda _: None,
    ) -> None:
        """`available`: what the system reports as free, bytes by device. Nothing is read before `start`.

        `emit` hears of what is fetched and dropped, with what was forecast, and whether a forecast was right.
        """
        self._emit = emit
        self.score = Score()
        self._available = available
        self._child: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._facts: dict[str, FilesInRam] = {}
        self._held: dict[str, float] = {}
        self._running: set[str] = set()
        self._unused: set[str] = set()
        self._commanded: set[str] = set()
        self._reads: dict[str, int] = {}
        self._wanted: list[str] = []
        """Models fetched by hand, the latest first: they come before any forecast, until they are used."""
        self._pinned: set[str] = set()
        self._keep: Callable[[Iterable[str]], None] = lambda _: None
        self._unwanted: set[str] = set()
        """Models evicted by hand: no forecast fetches them before they are used."""
        self._declared: tuple[tuple[str, ...], dict[str, str], tuple[tuple[str, ...], ...]] = ((), {}, ())
        self._predictor = Predictor((), {})
        self.take_over(manifest, table)

    def take_over(self, manifest: FleetManifest, table: RoutingTable) -> None:
        """Take over another manifest: what it no longer has is dropped with the next decision."""
        section = table.orchestration
        config = section.warm_pool if section is not None else None
        self._config = config or WarmPoolConfig(models_max=0)
        written = section.workers if section is not None and config is not None else ()
        names = dict.fromkeys(server for name in written for server in table.names.get(name, (name,)))
        self._everyone = {unit.name: unit for unit in manifest.servers}
        self._units = {name: self._everyone[name] for name in names if name in self._everyone}
        self._files = {unit.model_path: unit.files for unit in self._units.values()}
        declared = (tuple(self._units), self._config.predict, tuple(tuple(p) for p in self._config.patterns))
        if declared != self._declared:
            self._declared = declared
            self._predictor = Predictor(*declared)
        ram = next((d for d in manifest.devices if d.kind == "ram"), None)
        self._free_bytes = max(0, ram.budget_bytes - ram.worst_bytes) if ram else 0
        if self._child is not None:
            self._watch()
            self.decide()

    @property
    def budget_bytes(self) -> int:
        """Bytes that the pool may hold: as configured, at most what the plan left free, and what is really free."""
        planned = min(self._config.ram_bytes, self._free_bytes) if self._config.ram_bytes else self._free_bytes
        free = self._available().get("ram", planned)
        return max(0, min(planned, free + sum(facts.locked for facts in self._facts.values())))

    # --- what the fleet tells --------------------------------------------------------------------------------

    def domain(self, domain: str) -> None:
        """A request was about `domain`: fetch what that makes likely."""
        self._predictor.domain(domain)
        self.decide()

    def started(self, name: str) -> None:
        """The process of server `name` begins: count whether its file was warm and whether it was forecast."""
        unit = self._everyone.get(name)
        if unit is None:
            return
        self._running.add(name)
        if name in self._units:
            facts = self._facts.get(unit.model_path)
            if name != self._predictor.current and facts is not None:
                forecast = self._predictor.forecast()
                self.score.needed(warm=facts.warm, expected=bool(forecast) and forecast[0].worker == name)
                self._emit(_needed(name, forecast, facts))
            self._predictor.note(name)
            self._unused.discard(unit.model_path)
            self._unwanted.discard(unit.model_path)
            self._used(unit.model_path)
            self._held[unit.model_path] = time.monotonic()
        self.decide()

    def ended(self, name: str) -> None:
        """The process of server `name` has ended."""
        if name in self._running:
            self._running.discard(name)
            if name in self._units:
                self._held[self._units[name].model_path] = time.monotonic()
            self.decide()

    # --- deciding --------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Tell the child what to drop and what to hold, by the present state."""
        if self._child is None:
            return
        running = [self._everyone[name] for name in self._running if name in self._everyone]
        kept = {unit.model_path for unit in running} | self._pinned
        planned = {unit.model_path for unit in running if _is_planned(unit)}
        held = {
            key: HeldFiles(size_bytes=0 if key in planned else self._size(key), last_used=at, kept=key in kept)
            for key, at in self._held.items()
            if key in self._files
        }
        forecast = self._predictor.forecast()
        others = [self._units[f.worker].model_path for f in forecast]
        likely = [key for key, f in zip(others, forecast, strict=True) if f.why in ("rule", "pattern", "history")]
        sizes = {key: size for key in self._files if (size := self._size(key)) and key not in self._unwanted}
        asked = [key for key in (*self._wanted, *self._pinned) if key not in self._held]
        limits = PoolLimits(self.budget_bytes, self._config.models_max)
        moves = pool_moves([*asked, *self._wanted, *likely[: limits.models_max]], others, sizes, held, limits)
        for key in (*moves.drop, *(key for key in self._held if key not in self._files)):
            self._drop(key)
        for key in moves.load:
            self._held[key] = time.monotonic()
            self._unused.add(key)
            self._tell_of_fetch(key, forecast, limits, by_hand=key in asked)
        for key in self._held.keys() - self._commanded - planned:
            self._commanded.add(key)
            self._command(hold=key, paths=self._files[key])

    def _drop(self, key: str, why: str = "others are likelier, or room is short") -> None:
        del self._held[key]
        self._used(key)
        self._commanded.discard(key)
        facts = self._facts.get(key)
        wasted = facts.read - self._reads.get(key, 0) if facts is not None and key in self._unused else 0
        self._reads[key] = facts.read if facts is not None else 0
        self._unused.discard(key)
        self.score.evicted(wasted)
        if key not in self._files:
            self._pinned.discard(key)
            self._keep(self._pinned)
            why = "the fleet no longer has it"
        details = {"bytes": self._size(key), "read_in_vain_bytes": wasted}
        self._happened("dropped", key, "its files may leave RAM", why, details)
        self._command(drop=key, paths=self._files.get(key, ()))

    def _used(self, key: str) -> None:
        if key in self._wanted:
            self._wanted.remove(key)

    def by_hand(self, verb: Verb, name: str) -> None:
        """Do with the files of worker `name` what an operator asks. Raises KeyError for no worker, SuperviseError."""
        key = self._units[name].model_path
        if self._child is None or not self._size(key):
            raise refused(verb, name, "the pool does not know its files yet", "try again when the fleet is ready")
        if verb == "unpin":
            if key not in self._pinned:
                raise refused(verb, name, "nobody pinned it", "launch status shows what is pinned")
            self._pinned.discard(key)
            self._keep(self._pinned)
            self._happened("unpinned", key, "its files may leave RAM again")
            self.decide()
        elif verb == "evict":
            self._evict(key, name)
        else:
            self._fetch(key, name, verb)

    def _evict(self, key: str, name: str) -> None:
        """Drop a model's files. Raises SuperviseError."""
        if key in self._pinned:
            raise refused("evict", name, "it is pinned", f"launch unpin {name}")
        users = [n for n in sorted(self._running) if n in self._everyone and self._everyone[n].model_path == key]
        if users:
            raise refused("evict", name, f"{', '.join(users)} run on its files", f"launch stop {users[0]}")
        if key not in self._held:
            raise refused("evict", name, "the pool does not hold it", "launch status shows what is in RAM")
        self._unwanted.add(key)
        self._drop(key, _CAUSE_BY_HAND)
        self.decide()

    def _fetch(self, key: str, name: str, verb: Verb) -> None:
        """Fetch a model's files into RAM; pinned ones stay there. Raises SuperviseError."""
        before = set(self._pinned), list(self._wanted), set(self._unwanted)
        self._unwanted.discard(key)
        if verb == "pin":
            self._pinned.add(key)
        elif key not in self._held:
            self._wanted = [key, *(other for other in self._wanted if other != key)]
        self.decide()
        if key not in self._held:
            self._pinned, self._wanted, self._unwanted = before
            what = f"its {gib(self._size(key))} do not fit beside what runs and is pinned"
            raise refused(
                verb, name, f"{what}: the pool may hold {gib(self.budget_bytes)}", "launch unpin or stop another"
            )
        if verb == "pin" and key not in before[0]:
            self._keep(self._pinned)
            self._happened("pinned", key, f"its {self._size(key) / 1024**2:.0f} MiB stay in RAM", _CAUSE_BY_HAND)

    def remember(self, names: Iterable[str]) -> None:
        """Learn from the servers that began in an earlier run of the fleet, oldest first."""
        for name in names:
            self._predictor.note(name)

    def remember_pins(self, keys: Iterable[str], keep: Callable[[Iterable[str]], None]) -> None:
        """Pin the files that were pinned in an earlier run; `keep` is called with all pins at every change."""
        self._pinned.update(self._files.keys() & set(keys))
        self._keep = keep

    def _happened(
        self, kind: Kind, key: str, message: str, cause: str = "", details: dict[str, Any] | None = None
    ) -> None:
        """Emit an event about a model's files, under the names of all workers that run on them."""
        name = ", ".join(name for name, unit in self._units.items() if unit.model_path == key)
        self._emit(Happened(kind=kind, name=name, message=message, cause=cause, details=details or {}))

    def _tell_of_fetch(self, key: str, forecast: tuple[Forecast, ...], limits: PoolLimits, *, by_hand: bool) -> None:
        """Emit that a model's files are fetched, with what makes them likely, or that it was asked for."""
        best = next((f for f in forecast if self._units[f.worker].model_path == key), None)
        cause = f"{best.why} says that it is next (score {best.score:.2f})" if best is not None else ""
        details = {"bytes": self._size(key), "budget_bytes": limits.budget_bytes, "weighed": _weighed(forecast)}
        message = f"its {self._size(key) / 1024**2:.0f} MiB are fetched into RAM"
        self._happened("preload", key, message, _CAUSE_BY_HAND if by_hand else cause, details)

    def _size(self, key: str) -> int:
        """Bytes of a model's files; 0 until the child has reported them."""
        facts = self._facts.get(key)
        return facts.total if facts is not None else 0

    # --- the child -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child; no effect where no pool is configured, nor at a second call."""
        if self._units and self._config.models_max > 0 and not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._keep_child()), loop.create_task(self._keep_looking())]

    async def close(self) -> None:
        """End the child, which frees its locks. Pages stay in the page cache until the memory is needed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_looking(self) -> None:
        """Decide again every few seconds: free memory changes without an event."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            self.decide()

    async def _keep_child(self) -> None:
        """Run the child, read its reports, and start it again when it ends."""
        while True:
            try:
                await self._run_child()
            except (OSError, *UNREADABLE) as error:
                _LOG.warning("the warm pool cannot work: %s", error)
            finally:
                self._child = None
                self._facts.clear()
                self._reads.clear()
            await asyncio.sleep(_AGAIN_S)

    async def _run_child(self) -> None:
        """Run one child until it ends. Raises OSError."""
        argv = (sys.executable, "-I", "-S", str(_PROGRAM))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, start_new_session=True)
        self._child = child
        try:
            self._commanded.clear()
            self._watch()
            assert child.stdout is not None  # noqa: S101 - a pipe was asked for
            while line := await child.stdout.readline():
                self._reported(msgspec.json.decode(line, type=FilesInRam))
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def _watch(self) -> None:
        for key, paths in self._files.items():
            self._command(watch=key, paths=paths)

    def _reported(self, facts: FilesInRam) -> None:
        first = facts.key not in self._facts
        self.score.read(facts.read - (0 if first else self._facts[facts.key].read))
        self._facts[facts.key] = facts
        if first:
            self.decide()

    def _command(self, **command: Any) -> None:
        """Send a command to the child, without waiting for it to read."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.write(msgspec.json.encode(command) + b"\n")

    # --- what others see -------------------------------------------------------------------------------------

    def residency(self, name: str) -> tuple[float | None, str]:
        """Percent of the files of server `name` in RAM (None: unknown), and `warm`, `locked`, `loading` or ""."""
        unit = self._units.get(name)
        facts = self._facts.get(unit.model_path) if unit is not None else None
        if facts is None:
            return None, ""
        state = "loading" if facts.loading else "locked" if facts.locked else "warm" if facts.warm else ""
        return facts.percent, state

    def is_pinned(self, name: str) -> bool:
        """Whether the files of server `name` are pinned."""
        unit = self._units.get(name)
        return unit is not None and unit.model_path in self._pinned

    def workers(self) -> tuple[str, ...]:
        """Servers whose files the pool manages; none where no pool is configured."""
        return tuple(self._units) if self._config.models_max > 0 else ()

    def metrics(self) -> str:
        """Prometheus text; "" where no pool is configured."""
        return self.score.text(self._facts.values(), self.budget_bytes) if self._units else ""


def refused(verb: str, name: str, why: str, remedy: str) -> SuperviseError:
    """The error for an operation on the pool that is not possible."""
    return SuperviseError([fault("supervise/pool-refused", "", f"{verb} {name}: {why}", remedy)])


def _weighed(forecast: tuple[Forecast, ...]) -> list[dict[str, Any]]:
    return [{"worker": f.worker, "why": f.why, "score": round(f.score, 4)} for f in forecast]


def _needed(name: str, forecast: tuple[Forecast, ...], facts: FilesInRam) -> Happened:
    """The event for a worker that is needed: what was forecast, and whether its files were in RAM."""
    first = forecast[0] if forecast else None
    return Happened(
        kind="prediction",
        name=name,
        message=f"needed; its files {'were' if facts.warm else 'were not'} in RAM",
        cause=f"{first.worker} was expected ({first.why}, score {first.score:.2f})"
        if first
        else "nothing was expected",
        details={
            "right": first is not None and first.worker == name,
            "source": "pool" if facts.warm else "disk",
            "in_ram_percent": facts.percent,
            "weighed": _weighed(forecast),
        },
    )


def _is_planned(unit: ServerUnit) -> bool:
    """Whether the plan counts its file's pages with the server itself (CPU servers that map it)."""
    return any(need.device == "ram" and need.file_bytes > 0 for need in unit.memory)
