"""The experiment: points measured one after another, then two settings in pairs; every batch kept at once. I/O."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import psutil

from launcher.ir.sweep import Point, Sample, Workload
from launcher.supervise.measuring import Measurer
from launcher.sweep import batch_speeds, read_rows, row_text
from launcher.trial.candidate import Candidate
from launcher.trial.load import Asker
from launcher.trial.prompts import Prompts
from launcher.trial.server import running

TURNS = 4
"""Servers that do not fit beside each other are started in turn, so often each."""


class _Trial(NamedTuple):
    """A server that runs. `pid`: the process whose memory is measured."""

    candidate: Candidate
    asker: Asker
    measurer: Measurer
    pid: int


class Experiment:
    """One CSV and what is added to it. `say` is told of every batch: which, and tokens a second."""

    def __init__(
        self,
        workload: Workload,
        prompts: Prompts,
        csv: Path,
        log: Path,
        report: Callable[[Candidate, int, float], None],
    ) -> None:
        """Reads what an earlier run left in `csv`. Raises OSError; ValueError where it is another file."""
        self._workload, self._prompts, self._csv, self._log, self._report = workload, prompts, csv, log, report
        text = csv.read_text(encoding="utf-8") if csv.exists() else ""
        self.load_s: dict[str, float] = {}
        """Digest of a candidate → seconds that its last start took."""
        self._samples = list(read_rows(text)) if text else []
        csv.write_text(row_text(self._samples, header=True), encoding="utf-8")

    def key(self, candidate: Candidate, in_flight: int) -> str:
        """What rows of this point, build, model, command line and workload are known by."""
        work = msgspec.json.encode(msgspec.structs.replace(self._workload, warmup=0, batches=0))
        what = f"{candidate.server} {candidate.settings} {candidate.digest} {in_flight}".encode()
        parts = (what, work, msgspec.json.encode(self._prompts))
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def samples(self, candidate: Candidate, in_flight: int, phase: str = "grid") -> list[Sample]:
        """What is known of a point."""
        key = self.key(candidate, in_flight)
        return [s for s in self._samples if s.key == key and s.phase == phase]

    def open_batches(self, candidate: Candidate, in_flight: int) -> list[int]:
        """Batches of the grid that are not measured yet."""
        done = {s.batch for s in self.samples(candidate, in_flight)}
        return [b for b in range(self._workload.batches) if b not in done]

    def measure(self, candidate: Candidate, points: Sequence[Point]) -> None:
        """All points of one setting, which is started once. Raises TrialError, OSError."""
        missing = {p.in_flight: self.open_batches(candidate, p.in_flight) for p in points}
        if not any(missing.values()):
            return
        with self._started(candidate) as trial:
            for in_flight, batches in missing.items():
                if batches:
                    self._warm_up(trial, in_flight)
                for batch in batches:
                    self._batch(trial, "grid", batch, in_flight)

    def confirm(self, now: tuple[Candidate, int], best: tuple[Candidate, int], count: int) -> list[tuple[float, float]]:
        """`count` pairs of batches, each of both settings with its requests in flight: tokens a second, now and best.

        Side by side where both fit into what is free, which one first in turn; else started in turn. Raises TrialError.
        """
        wanted = [pair for pair in range(count) if not self._has_pair(now, best, pair)]
        if wanted:
            (self._side_by_side if fits_beside(now[0], best[0]) else self._in_turns)(now, best, wanted)
        sides = ((s for s in self.samples(*side, "confirm") if s.batch < count) for side in (now, best))
        return list(zip(*map(batch_speeds, sides), strict=True))

    def _has_pair(self, now: tuple[Candidate, int], best: tuple[Candidate, int], pair: int) -> bool:
        return all(any(s.batch == pair for s in self.samples(*side, "confirm")) for side in (now, best))

    def _side_by_side(self, now: tuple[Candidate, int], best: tuple[Candidate, int], pairs: Sequence[int]) -> None:
        with self._started(now[0]) as first, self._started(best[0], ".second") as second:
            both = ((first, now[1]), (second, best[1]))
            for trial, in_flight in both:
                self._warm_up(trial, in_flight)
            for pair in pairs:
                for trial, in_flight in both if pair % 2 == 0 else both[::-1]:
                    self._batch(trial, "confirm", pair, in_flight)

    def _in_turns(self, now: tuple[Candidate, int], best: tuple[Candidate, int], pairs: Sequence[int]) -> None:
        """One stops before the other starts: now best, best now, and so on."""
        size = -(-len(pairs) // TURNS)
        for turn in range(0, len(pairs), size):
            for candidate, in_flight in (now, best) if turn // size % 2 == 0 else (best, now):
                with self._started(candidate) as trial:
                    self._warm_up(trial, in_flight)
                    for pair in pairs[turn : turn + size]:
                        self._batch(trial, "confirm", pair, in_flight)

    @contextlib.contextmanager
    def _started(self, candidate: Candidate, suffix: str = "") -> Iterator[_Trial]:
        """A server that runs with the candidate's settings. Raises TrialError."""
        log = self._log.with_name(self._log.name + suffix)
        with running(candidate.words, candidate.env, log, candidate.plan.start_timeout_s) as server:
            self.load_s[candidate.digest] = server.load_s
            asker = Asker(server.url, self._workload, self._prompts)
            try:
                yield _Trial(candidate, asker, Measurer(candidate.gpus), server.pid)
            finally:
                asker.close()

    def _warm_up(self, trial: _Trial, in_flight: int) -> None:
        """Batches that do not count."""
        for number in range(self._workload.warmup):
            trial.asker.batch(1000 + number, in_flight)

    def _batch(self, trial: _Trial, phase: Literal["grid", "confirm"], number: int, in_flight: int) -> None:
        """One batch; its rows are on the disk when this returns. Raises TrialError, OSError."""
        candidate = trial.candidate
        batch_s, answers = trial.asker.batch(number, in_flight)
        measured = trial.measurer.measure({trial.pid: ()})[trial.pid]
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        samples = [
            Sample(
                key=self.key(candidate, in_flight),
                server=candidate.server,
                settings=candidate.settings,
                in_flight=in_flight,
                phase=phase,
                batch=number,
                request=which,
                batch_s=round(batch_s, 6),
                latency_s=round(answer.latency_s, 6),
                memory_bytes=(measured.pss_bytes or 0) + sum(measured.gpu_bytes.values()),
                at=at,
                **msgspec.structs.asdict(answer.timings),
            )
            for which, answer in enumerate(answers)
        ]
        with self._csv.open("a", encoding="utf-8") as file:
            file.write(row_text(samples))
            file.flush()
            os.fsync(file.fileno())
        self._samples += samples
        self._report(candidate, in_flight, batch_speeds(samples)[0])


def fits_beside(first: Candidate, second: Candidate) -> bool:
    """Whether both may run at once: their plans fit into the RAM that is free; never two on a GPU."""
    if first.plan.settings.devices or second.plan.settings.devices:
        return False
    return first.planned_bytes + second.planned_bytes <= psutil.virtual_memory().available


def no_room(candidate: Candidate) -> str:
    """Why a candidate without devices cannot be started now; "" when it can."""
    free = psutil.virtual_memory().available
    if candidate.plan.settings.devices or candidate.planned_bytes <= free:
        return ""
    return f"it would take {candidate.planned_bytes} bytes of RAM, and {free} are free now"
