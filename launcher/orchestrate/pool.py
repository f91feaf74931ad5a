"""The warm pool: files of workers that do not run now, kept in RAM so that a swap reads memory and no disk. I/O.

llama.cpp has no model object to keep in memory: warm means that the file's pages are in the page cache, locked where
the limit allows, within what the plan left free. A child process (`resident.py`) reads, locks and measures; this
object, in the event loop, decides and remembers, and never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.ir.config import OrchestrationConfig, WarmPoolConfig
from launcher.ir.fleet import FleetManifest, RoutingTable, ServerUnit
from launcher.orchestrate.pool_room import Held, Limits, pool_moves
from launcher.orchestrate.pool_score import Score
from launcher.orchestrate.predict import Predictor

_LOG = logging.getLogger("launch.pool")
_PROGRAM = Path(__file__).with_name("resident.py")
_AGAIN_S = 5.0
"""Pause before a child that ended is started again, and between looks at how much memory is free."""
WARM = 0.95
"""Share of a file that must be in RAM to call it warm: a few pages may be of no use to anybody."""


class Residency(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says of a model's files, in bytes; `resident` None: the kernel does not tell."""

    key: str
    resident: int | None
    total: int
    locked: int
    loading: bool
    read: int

    @property
    def percent(self) -> float | None:
        """Share in RAM."""
        return None if self.resident is None or not self.total else 100 * self.resident / self.total

    @property
    def warm(self) -> bool:
        """Whether a start would read memory."""
        return self.resident is not None and self.total > 0 and self.resident >= WARM * self.total


class WarmPool:
    """One deployment's pool. All methods are called in the event loop."""

    def __init__(
        self,
        manifest: FleetManifest,
        table: RoutingTable,
        *,
        available: Callable[[], Mapping[str, int]],
        program: Path = _PROGRAM,
    ) -> None:
        """`available`: what the system reports as free, bytes by device. Nothing is read before `start`."""
        self.score = Score()
        self._available = available
        self._program = program
        self._child: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._facts: dict[str, Residency] = {}
        self._held: dict[str, float] = {}
        self._running: set[str] = set()
        self._unused: set[str] = set()
        self._asked: set[str] = set()
        self._reads: dict[str, int] = {}
        self._declared: tuple[tuple[str, ...], dict[str, str], tuple[tuple[str, ...], ...]] = ((), {}, ())
        self._predictor = Predictor((), {})
        self.take_over(manifest, table)

    def take_over(self, manifest: FleetManifest, table: RoutingTable) -> None:
        """Another manifest: what it no longer has is forgotten, and dropped with the next decision."""
        config = _config(table)
        self._config = config or WarmPoolConfig(models_max=0)
        names = _workers(table) if config else ()
        units = {unit.name: unit for unit in manifest.servers}
        self._units = {name: units[name] for name in names if name in units}
        self._everyone = units
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
        """What the pool may hold: as configured, at most what the plan left free, and what is really there."""
        planned = min(self._config.ram_bytes, self._free_bytes) if self._config.ram_bytes else self._free_bytes
        free = self._available().get("ram", planned)
        return max(0, min(planned, free + sum(facts.locked for facts in self._facts.values())))

    # --- what the fleet tells --------------------------------------------------------------------------------

    def domain(self, domain: str) -> None:
        """A request was about `domain`: what it makes likely is fetched meanwhile."""
        self._predictor.domain(domain)
        self.decide()

    def started(self, name: str) -> None:
        """The process of server `name` begins: it was needed, and its file was warm or not."""
        unit = self._everyone.get(name)
        if unit is None:
            return
        self._running.add(name)
        if name in self._units:
            facts = self._facts.get(unit.model_path)
            if name != self._predictor.current and facts is not None:
                first = next((f.worker for f in self._predictor.forecast()), "")
                self.score.needed(warm=facts.warm, expected=first == name)
            self._predictor.note(name)
            self._unused.discard(unit.model_path)
            self._held[unit.model_path] = time.monotonic()
        self.decide()

    def ended(self, name: str) -> None:
        """The process of server `name` is gone."""
        if name in self._running:
            self._running.discard(name)
            if name in self._units:
                self._held[self._units[name].model_path] = time.monotonic()
            self.decide()

    # --- deciding --------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Tell the child what to drop and what to hold, from what is known now."""
        if self._child is None:
            return
        kept = {self._everyone[name].model_path for name in self._running if name in self._everyone}
        planned = {
            self._everyone[n].model_path
            for n in self._running
            if n in self._everyone and _is_planned(self._everyone[n])
        }
        held = {
            key: Held(size_bytes=0 if key in planned else self._size(key), last_used=at, kept=key in kept)
            for key, at in self._held.items()
            if key in self._files
        }
        forecast = self._predictor.forecast()
        likely = [self._units[f.worker].model_path for f in forecast if f.why in ("rule", "pattern", "history")]
        others = [self._units[f.worker].model_path for f in forecast]
        sizes = {key: self._size(key) for key in self._files if self._size(key)}
        limits = Limits(self.budget_bytes, self._config.models_max)
        moves = pool_moves(likely[: limits.models_max], others, sizes, held, limits)
        for key in (*moves.drop, *(key for key in self._held if key not in self._files)):
            self._drop(key)
        for key in moves.load:
            self._held[key] = time.monotonic()
            self._unused.add(key)
        for key in self._held.keys() - self._asked - planned:
            self._asked.add(key)
            self._say(hold=key, paths=self._files[key], lock=True)

    def _drop(self, key: str) -> None:
        """Let go of a model's files."""
        del self._held[key]
        self._asked.discard(key)
        facts = self._facts.get(key)
        wasted = facts.read - self._reads.get(key, 0) if facts is not None and key in self._unused else 0
        self._reads[key] = facts.read if facts is not None else 0
        self._unused.discard(key)
        self.score.evicted(wasted)
        self._say(drop=key, paths=self._files.get(key, ()))

    def _size(self, key: str) -> int:
        """Bytes of a model's files, 0 until the child has looked."""
        facts = self._facts.get(key)
        return facts.total if facts is not None else 0

    # --- the child -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; nothing happens where no pool is configured, and at a second call."""
        if self._units and self._config.models_max > 0 and not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._keep_child()), loop.create_task(self._keep_looking())]

    async def close(self) -> None:
        """End the child: what it had locked is free again. Pages stay in the page cache until somebody needs room."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_looking(self) -> None:
        """Decide again now and then: free memory changes without anybody saying so."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            self.decide()

    async def _keep_child(self) -> None:
        """Run the child, listen to it, start it again when it ends."""
        while True:
            try:
                await self._run_child()
            except (OSError, msgspec.DecodeError) as error:
                _LOG.warning("the warm pool cannot work: %s", error)
            finally:
                self._child = None
                self._facts.clear()
                self._reads.clear()
            await asyncio.sleep(_AGAIN_S)

    async def _run_child(self) -> None:
        """One child from start to end. Raises OSError."""
        argv = (sys.executable, "-I", "-S", str(self._program))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, start_new_session=True)
        self._child = child
        try:
            self._asked.clear()
            self._watch()
            assert child.stdout is not None  # noqa: S101 - a pipe was asked for
            while line := await child.stdout.readline():
                self._heard(msgspec.json.decode(line, type=Residency))
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def _watch(self) -> None:
        """Have the child look at every worker's files."""
        for key, paths in self._files.items():
            self._say(watch=key, paths=paths)

    def _heard(self, facts: Residency) -> None:
        """The child says something new."""
        first = facts.key not in self._facts
        self.score.read(facts.read - (0 if first else self._facts[facts.key].read))
        self._facts[facts.key] = facts
        if first:
            self.decide()

    def _say(self, **command: Any) -> None:
        """Tell the child; a child that does not read is not waited for."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.write(msgspec.json.encode(command) + b"\n")

    # --- what others see -------------------------------------------------------------------------------------

    def residency(self, name: str) -> tuple[float | None, str]:
        """Percent of server `name`'s files in RAM (None: not known), and `warm`, `locked`, `loading` or ""."""
        unit = self._units.get(name)
        facts = self._facts.get(unit.model_path) if unit is not None else None
        if facts is None:
            return None, ""
        state = "loading" if facts.loading else "locked" if facts.locked else "warm" if facts.warm else ""
        return facts.percent, state

    def metrics(self) -> str:
        """Prometheus text; "" where no pool is configured."""
        return self.score.text(self._facts.values(), self.budget_bytes) if self._units else ""


def _config(table: RoutingTable) -> WarmPoolConfig | None:
    """The pool's section, None for none."""
    if table.orchestration is None:
        return None
    with contextlib.suppress(msgspec.ValidationError):  # said by the orchestrator, who reads the whole section
        return msgspec.convert(table.orchestration, OrchestrationConfig).warm_pool
    return None


def _workers(table: RoutingTable) -> tuple[str, ...]:
    """Servers of the orchestration's workers, each once."""
    written = (table.orchestration or {}).get("workers", ())
    return tuple(dict.fromkeys(server for name in written for server in table.names.get(name, (name,))))


def _is_planned(unit: ServerUnit) -> bool:
    """Whether the plan counts its file's pages with the server itself (CPU servers that map it)."""
    return any(need.device == "ram" and need.file_bytes > 0 for need in unit.memory)
