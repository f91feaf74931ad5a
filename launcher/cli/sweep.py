"""`launch sweep`: measure settings of planned servers, recommend one, write it into the config."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from launcher import files, trial
from launcher import sweep as rules
from launcher.base import procfs
from launcher.base.locks import LockOwner
from launcher.cli.sweep_apply import apply_all, places_to_write
from launcher.cli.sweep_view import png, png_requirement, show_sweep
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import ConfigError, SuperviseError
from launcher.files.measured import keep_measured, read_measured
from launcher.files.state import LockHeldError, OwnedLock, state_root
from launcher.ir.measured import Measurement
from launcher.ir.sweep import Point, PointResult, Recommendation, SweepDocument, Values, Workload

PAIRS = 2
"""Pairs of batches that confirm the best setting, per batch of the grid, and as many once more."""


class SweepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `launch sweep`."""

    workload: Workload
    in_flight: tuple[int, ...] = ()
    prompts: Path | None = None
    p95_limit: float = 1.5
    csv: Path | None = None
    svg: Path | None = None
    png: Path | None = None
    fresh: bool = False
    apply: bool = False


def run_sweep(words: Sequence[str], config_dirs: list[Path], options: SweepOptions, *, as_json: bool) -> int:
    """Run `launch sweep`. `words`: servers, `FIELD=a,b`, overrides. Raises LaunchError."""
    out, err = terminals()
    servers = [w for w in words if "=" not in w and not w.startswith("~")]
    overrides = [w for w in words if w not in servers and not rules.is_swept(w)]
    try:
        fields = rules.swept([w for w in words if w not in servers and rules.is_swept(w)])
        prompts = trial.read_prompts(options.prompts) if options.prompts else trial.Prompts()
    except (ValueError, OSError) as error:
        raise _usage(f"{options.prompts}: {error}" if isinstance(error, OSError) else str(error)) from None
    _check_options(options)
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    compiled.require()
    check_servers(servers, compiled)
    places = places_to_write(servers, config_dirs) if options.apply else {}
    csv = options.csv or state_root() / "sweeps" / f"{compiled.plan.deployment}.csv"
    with files.writing(csv, "a sweep keeps every batch there as it comes"), _csv_lock(csv):
        if options.fresh:
            csv.unlink(missing_ok=True)
        sweep = _Sweep(compiled, overrides, config_dirs, options, prompts, csv, err)
        points, recommended = sweep.run(servers, fields)
    if all(point.refused for point in points):
        raise nothing_measured(points)
    svg = options.svg or csv.with_suffix(".svg")
    title = f"{', '.join(servers)} on {compiled.plan.deployment}, {options.workload.n_predict} tokens an answer"
    _draw(rules.plot(points, title), svg, options.png)
    engine = ", ".join(sorted({dialect.name for _, dialect in compiled.engines.values()}))
    document = SweepDocument(
        deployment=compiled.plan.deployment,
        engine=engine,
        workload=sweep.workload,
        points=tuple(points),
        recommendation=tuple(recommended),
        verdict=rules.verdict_of_all(recommended),
        csv=str(csv),
        svg=str(svg),
        applied=apply_all(recommended, places, f"{trial.utc_now()[:10]}, {engine}", overrides, config_dirs),
    )
    if as_json:
        out.json(document)
    else:
        show_sweep(out, document)
    return 0


def _check_options(options: SweepOptions) -> None:
    """Raise ConfigError for options that would fail once all is measured, or mean nothing."""
    if not 1 <= options.p95_limit < math.inf:  # a NaN is neither below nor above what the option may be
        raise _usage(f"--p95-limit {options.p95_limit}: how many times that of one request at a time p95 may be")
    named = [path for path in (options.csv, options.svg, options.png) if path is not None]
    beside = {".lock", ".log", ".svg"}  # written as the CSV is called, with these endings
    if len({*named}) < len(named) or (options.csv is not None and options.csv.suffix in beside):
        raise _usage(f"{named[0]}: a sweep writes another file of that name")
    if options.png and (missing := png_requirement()):
        raise _usage(missing)


def _draw(drawn: str, svg: Path, picture: Path | None) -> None:
    """Write the plot, and with `picture` also as PNG. Raises LaunchError."""
    with files.writing(svg):
        files.write_atomic(svg, drawn)
    if picture is not None:
        with files.writing(picture):
            files.write_atomic(picture, png(drawn))


class _Sweep:
    def __init__(  # noqa: PLR0917 - all that a sweep is of
        self,
        compiled: Compilation,
        overrides: list[str],
        config_dirs: list[Path],
        options: SweepOptions,
        prompts: trial.Prompts,
        csv: Path,
        err: Terminal,
    ) -> None:
        """Read what `csv` has. Raises ConfigError if it is another file."""
        self._compiled, self._overrides, self._dirs = compiled, overrides, config_dirs
        self._options, self._err = options, err
        self.workload = msgspec.structs.replace(options.workload, prompts=prompts.source)
        if prompts.lengths:
            self.workload = msgspec.structs.replace(self.workload, prompt_tokens=prompts.lengths)
        try:
            self._experiment = trial.Experiment(self.workload, prompts, csv, csv.with_suffix(".log"), self._report)
        except ValueError as error:
            raise _usage(f"{csv}: {error}; another with --csv, or --fresh to begin anew") from None
        self._begun, self._done, self._wanted = time.monotonic(), 0, 0
        self._pairs = PAIRS * (options.workload.batches + 1)
        self._known = read_measured()
        """Measurements of this host before the sweep."""

    def run(
        self, servers: Sequence[str], fields: Mapping[str, tuple[str, ...]]
    ) -> tuple[list[PointResult], list[Recommendation]]:
        """Measure every point of every server. Returns the results, and a recommendation for each server."""
        plans = {server: self._planned(server, fields) for server in servers}
        for _, tried in plans.values():
            for points, found in tried:
                self._wanted += sum(len(self._experiment.open_batches(found, p.in_flight)) for p in points)
            self._wanted += 2 * self._pairs if len(tried) > 1 else 0
        results, recommended = [], []
        planned = {s.name: s for s in self._compiled.plan.servers}
        for server, (current, tried) in plans.items():
            mine = self._grid(current, tried)
            results += mine
            chosen, entry = self._recommended(server, mine, tried), planned[server]
            recommended.append(msgspec.structs.replace(chosen, model=entry.entry, port=entry.port))
        return results, recommended

    def _planned(
        self, server: str, fields: Mapping[str, tuple[str, ...]]
    ) -> tuple[Values, list[tuple[list[Point], trial.Variant]]]:
        """A server's present values, and each setting as it would be started, with its points."""
        now = trial.values_now(self._compiled, server, fields)
        current = rules.current_of(fields, now)
        points = rules.grid(server, fields, now, self._options.in_flight)
        tried = []
        for values, group in groupby(points, key=lambda p: p.values):
            found = trial.variant_of(server, values, current, self._overrides, self._dirs)
            refused = found.refused or trial.no_room(found)
            if refused:
                self._err.line(f"{server} {found.settings}: not started: {refused}")
            tried.append((list(group), msgspec.structs.replace(found, refused=refused)))
        return current, tried

    def _grid(self, current: Values, tried: Sequence[tuple[list[Point], trial.Variant]]) -> list[PointResult]:
        results: list[PointResult] = []
        new: list[Measurement] = []
        for points, found in tried:
            refused = found.refused
            own = [measured for measured in self._known if measured.key == found.digest]
            decode = found.expected([*own, *new] or self._known)  # the sweep's own points are nearer than others here
            if not refused:
                try:
                    self._experiment.measure(found, points)
                except trial.TrialError as error:
                    refused = str(error)
                    self._err.line(f"{found.server} {found.settings}: {refused}")
            for point in points:
                blank = PointResult(
                    server=point.server,
                    settings=dict(point.values),
                    in_flight=point.in_flight,
                    current=point.values == current,
                    refused=refused,
                    planned_bytes=found.planned_bytes,
                )
                samples = [] if refused else self._experiment.samples(found, point.in_flight)
                result = rules.with_expectation(rules.summarise(blank, samples), decode) if samples else blank
                results.append(result)
                new += self._measurement(found, result)
        if now := [measured for measured in new if measured.load_s]:
            keep_measured(now)
        return list(rules.with_multipliers(results))

    def _measurement(self, found: trial.Variant, result: PointResult) -> tuple[Measurement, ...]:
        """The measurement of a point with one request at a time; load time 0 if an earlier run measured it."""
        if result.in_flight != 1 or not result.batches:
            return ()
        load_s, load = self._experiment.load_s.get(found.digest, 0.0), os.getloadavg()[0]
        return (trial.measurement_of(found, result, self.workload, load_average=load, load_s=load_s),)

    def _recommended(
        self, server: str, results: Sequence[PointResult], tried: Sequence[tuple[list[Point], trial.Variant]]
    ) -> Recommendation:
        """What the rule chooses, measured again beside the present setting."""
        limit = self._options.p95_limit
        chosen = rules.candidate(results, limit)
        if chosen is None:
            return rules.recommend(server, None, None, limit)
        by_values = {found.values: found for _, found in tried}
        now, best = ((by_values[tuple(p.settings.items())], p.in_flight) for p in chosen)
        try:
            for look in range(rules.ROUNDS):
                pairs = self._pairs * 2**look
                gain = rules.gain_of(self._experiment.confirm(now, best, pairs))
                if rules.is_decided(gain) or look == rules.ROUNDS - 1:
                    return rules.recommend(server, chosen, gain, limit)
                self._err.line(f"{server}: {gain.low:+.1%} to {gain.high:+.1%} after {pairs} pairs: as many again")
                self._wanted += 2 * pairs
        except trial.TrialError as error:
            self._err.line(f"{server}: {error}")
        return rules.recommend(server, None, None, limit)

    def _report(self, found: trial.Variant, in_flight: int, speed: float) -> None:
        self._done += 1
        spent = time.monotonic() - self._begun
        left = spent / self._done * max(0, self._wanted - self._done)
        about = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        what = f"{found.server} {found.settings or 'as it is'}, {in_flight} at once"
        self._err.line(f"[{self._done}/{self._wanted}] {what}: {speed:.1f} tokens/s; about {about} left")


def check_servers(servers: Sequence[str], compiled: Compilation) -> None:
    """Raise ConfigError if no server is named, one is unknown, or one generates no text."""
    planned = {s.name: s for s in compiled.plan.servers}
    if not servers:
        raise _usage(f"sweep which server? There are: {', '.join(sorted(planned))}")
    for name in servers:
        if name not in planned:
            near = difflib.get_close_matches(name, planned, n=1)
            raise _usage(f"there is no server {name}; {f'did you mean {near[0]}?' if near else ', '.join(planned)}")
        if planned[name].settings.embedding:
            raise _usage(f"{name} serves embeddings: it generates no tokens that could be measured")


@contextlib.contextmanager
def _csv_lock(csv: Path) -> Iterator[None]:
    """Lock the CSV file for the block: one sweep at a time writes it. Creates its folder. Raises ConfigError."""
    csv.parent.mkdir(parents=True, exist_ok=True)
    lock = OwnedLock(csv.with_suffix(".lock"))
    try:
        lock.acquire(LockOwner(**procfs.birth(os.getpid())))
    except LockHeldError as error:
        raise _usage(f"another sweep is under way: {error}; wait for it, or name another file with --csv") from None
    try:
        yield
    finally:
        lock.release()


def nothing_measured(points: Sequence[PointResult]) -> SuperviseError:
    """The error when no point could be measured."""
    reasons = dict.fromkeys(f"{p.server} {rules.setting_words(p.settings)}: {p.refused}" for p in points)
    return SuperviseError.of("sweep/nothing-measured", f"none of {len(points)} points could be measured", *reasons)


def _usage(message: str) -> ConfigError:
    note = "launch sweep SERVER… FIELD=a,b,c [OVERRIDES]"
    return ConfigError.of("sweep/usage", message, note)
