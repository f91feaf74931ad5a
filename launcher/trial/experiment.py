"""Measure points one after another, then two settings in pairs; every batch is stored at once. I/O."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import psutil

from launcher.files import write_atomic
from launcher.ir.sweep import Point, Sample, Workload
from launcher.supervise.measuring import Measurer
from launcher.sweep import batch_speeds, read_rows, row_text
from launcher.trial.load import LoadClient, Prompts
from launcher.trial.server import running
from launcher.trial.variant import Variant, utc_now

STARTS_EACH = 4
"""Times that each of two servers is started, in turn, if they do not fit beside each other."""


class _Trial(NamedTuple):
    """A running server. `pid`: the process whose memory is measured."""

    variant: Variant
    client: LoadClient
    measurer: Measurer
    pid: int


class Experiment:
    """One CSV and what is added to it. `report` is told of every batch: which, and tokens a second."""

    def __init__(
        self,
        workload: Workload,
        prompts: Prompts,
        csv: Path,
        log: Path,
        report: Callable[[Variant, int, float], None],
    ) -> None:
        """Read what an earlier run left in `csv`. Raises OSError; ValueError if it is another file."""
        self._workload, self._prompts, self._log, self._report = workload, prompts, log, report
        self._csv = csv.resolve()
        if csv.exists() and not csv.is_file():
            raise OSError(errno.EINVAL, "it is no regular file", str(csv))
        text = csv.read_text(encoding="utf-8") if csv.exists() else ""
        self.load_s: dict[str, float] = {}
        """Digest of a variant → seconds that its last start took."""
        self._samples = list(read_rows(text)) if text else []
        write_atomic(self._csv, row_text(self._samples, header=True))

    def key(self, variant: Variant, in_flight: int) -> str:
        """Key of a point's rows in the CSV: by server, settings, build, model, command line, workload and prompts."""
        work = msgspec.json.encode(msgspec.structs.replace(self._workload, warmup=0, batches=0))
        what = f"{variant.server} {variant.settings} {variant.digest} {in_flight}".encode()
        parts = (what, work, msgspec.json.encode(self._prompts))
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def samples(self, variant: Variant, in_flight: int, phase: str = "grid") -> list[Sample]:
        """The samples of a point."""
        key = self.key(variant, in_flight)
        return [s for s in self._samples if s.key == key and s.phase == phase]

    def open_batches(self, variant: Variant, in_flight: int) -> list[int]:
        """Numbers of a point's grid batches that are not measured yet."""
        done = {s.batch for s in self.samples(variant, in_flight)}
        return [b for b in range(self._workload.batches) if b not in done]

    def measure(self, variant: Variant, points: Sequence[Point]) -> None:
        """Measure all points of one setting, with one start of its server. Raises TrialError, OSError."""
        missing = {p.in_flight: self.open_batches(variant, p.in_flight) for p in points}
        if not any(missing.values()):
            return
        with self._started(variant) as trial:
            for in_flight, batches in missing.items():
                if batches:
                    self._warm_up(trial, in_flight)
                for batch in batches:
                    self._batch(trial, "grid", batch, in_flight)

    def confirm(self, now: tuple[Variant, int], best: tuple[Variant, int], count: int) -> list[tuple[float, float]]:
        """Measure `count` pairs of batches, one of each setting; returns tokens per second, (now, best).

        Both run side by side if both fit into free memory, and take turns to be first; else they are started in turn.
        Raises TrialError.
        """
        wanted = [pair for pair in range(count) if not self._has_pair(now, best, pair)]
        if wanted:
            (self._side_by_side if fits_beside(now[0], best[0]) else self._in_turns)(now, best, wanted)
        sides = ((s for s in self.samples(*side, "confirm") if s.batch < count) for side in (now, best))
        return list(zip(*map(batch_speeds, sides), strict=True))

    def _has_pair(self, now: tuple[Variant, int], best: tuple[Variant, int], pair: int) -> bool:
        return all(any(s.batch == pair for s in self.samples(*side, "confirm")) for side in (now, best))

    def _side_by_side(self, now: tuple[Variant, int], best: tuple[Variant, int], pairs: Sequence[int]) -> None:
        with self._started(now[0]) as first, self._started(best[0], ".second") as second:
            both = ((first, now[1]), (second, best[1]))
            for trial, in_flight in both:
                self._warm_up(trial, in_flight)
            for pair in pairs:
                for trial, in_flight in both if pair % 2 == 0 else both[::-1]:
                    self._batch(trial, "confirm", pair, in_flight)

    def _in_turns(self, now: tuple[Variant, int], best: tuple[Variant, int], pairs: Sequence[int]) -> None:
        """Measure with one server at a time: now best, best now, and so on."""
        size = -(-len(pairs) // STARTS_EACH)
        for turn in range(0, len(pairs), size):
            for variant, in_flight in (now, best) if turn // size % 2 == 0 else (best, now):
                with self._started(variant) as trial:
                    self._warm_up(trial, in_flight)
                    for pair in pairs[turn : turn + size]:
                        self._batch(trial, "confirm", pair, in_flight)

    @contextlib.contextmanager
    def _started(self, variant: Variant, suffix: str = "") -> Iterator[_Trial]:
        """A server that runs with the variant's settings. Raises TrialError."""
        log = self._log.with_name(self._log.name + suffix)
        with running(variant.words, variant.env, log, variant.plan.start_timeout_s) as server:
            self.load_s[variant.digest] = server.load_s
            with contextlib.closing(LoadClient(server.url, self._workload, self._prompts)) as client:
                yield _Trial(variant, client, Measurer(variant.gpus), server.pid)

    def _warm_up(self, trial: _Trial, in_flight: int) -> None:
        for number in range(self._workload.warmup):
            trial.client.batch(1000 + number, in_flight)

    def _batch(self, trial: _Trial, phase: Literal["grid", "confirm"], number: int, in_flight: int) -> None:
        """Measure one batch; its rows are on disk when this returns. Raises TrialError, OSError."""
        variant = trial.variant
        batch_s, answers = trial.client.batch(number, in_flight)
        measured = trial.measurer.measure({trial.pid: ()})[trial.pid]
        samples = [
            Sample(
                key=self.key(variant, in_flight),
                server=variant.server,
                settings=variant.settings,
                in_flight=in_flight,
                phase=phase,
                batch=number,
                request=which,
                batch_s=round(batch_s, 6),
                latency_s=round(latency_s, 6),
                memory_bytes=(measured.pss_bytes or 0) + sum(measured.gpu_bytes.values()),
                at=utc_now(),
                **msgspec.structs.asdict(timings),
            )
            for which, (latency_s, timings) in enumerate(answers)
        ]
        with self._csv.open("a", encoding="utf-8") as file:
            file.write(row_text(samples))
            file.flush()
            os.fsync(file.fileno())
        self._samples += samples
        self._report(variant, in_flight, batch_speeds(samples)[0])


def fits_beside(first: Variant, second: Variant) -> bool:
    """Whether both may run at once: their plans fit into free RAM, and neither uses a GPU."""
    if first.plan.settings.devices or second.plan.settings.devices:
        return False
    return first.planned_bytes + second.planned_bytes <= psutil.virtual_memory().available


def no_room(variant: Variant) -> str:
    """Why a variant without devices cannot be started now; "" when it can."""
    free = psutil.virtual_memory().available
    if variant.plan.settings.devices or variant.planned_bytes <= free:
        return ""
    return f"it would take {variant.planned_bytes} bytes of RAM, and {free} are free now"
