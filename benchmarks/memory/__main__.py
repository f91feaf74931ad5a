"""Run every case, print the table and the verdict; `--write` puts both into docs/memory.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.memory.cases import Case, cases
from benchmarks.memory.measure import Row, compare
from launcher.engine import EMBEDDED, DryRunError, resolve_binary
from launcher.hardware import take_inventory
from launcher.ir.config import EngineConfig

PAGE = Path(__file__).parents[2] / "docs/memory.md"
BEGIN, END = "<!-- benchmarks.memory -->\n", "<!-- /benchmarks.memory -->\n"
HALF = 0.0051
"""MiB by which the log rounds one buffer."""
LOG = 0.06
"""MiB of rounding: several buffers of 0.01 MiB each."""
SLACK, SHARE = 64.0, 0.05
"""MiB and share of what is resident by which a plan may be over."""
MEDIAN, WORST = 0.01, 0.06
"""Of what a server of real size takes in all, the share by which a plan may be over."""
TABLE_ROUNDING = 6.0
"""MiB that the breakdown of a dry run rounds away: 1 a buffer type."""


def main() -> int:
    """0 where every acceptance line holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    parser.add_argument("--random", type=int, default=80, help="small models to draw; of real shapes a quarter as many")
    parser.add_argument(
        "--binary",
        action="append",
        help="NAME=PATH of a llama-server; the first is started too; absent: the embedded one",
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/memory.md")
    args = parser.parse_args()
    given = args.binary or [f"embedded={resolve_binary(EngineConfig(binary=EMBEDDED, dialect=''))}"]
    builds = {name: Path(path) for name, _, path in (b.partition("=") for b in given)}
    rows: list[Row] = []
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), args.seed, args.random):
            try:
                rows.append(compare(tuple(builds.values()), case))
            except DryRunError as error:
                refused.append(f"{_label(case)}: {error}")
    good, verdict = judge(rows, tuple(builds))
    named = "".join(f" --binary {name}=…" for name in builds)
    command = f"python -m benchmarks.memory --seed {args.seed} --random {args.random}{named} --write"
    host = take_inventory()
    head = f"`{command}`, {host.cpu_model} ({', '.join(host.features)})."
    refusals = [f"- refused by the server: {r}" for r in refused]
    tables = [*by_build(rows, tuple(builds)), "", *compute_table(rows, tuple(builds)), "", *live_table(rows)]
    text = "\n".join([head, "", *verdict, *refusals, "", *tables, ""])
    print(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0 if good else 1


def judge(rows: Sequence[Row], builds: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether all acceptance lines hold, and each of them with its figures."""
    under = [
        f"{build}: {_label(row.case)}"
        for i, build in enumerate(builds)
        for row in rows
        if row.compute[0] + HALF < row.compute[1 + i]
    ]
    full = [sorted(row.over(i) for row in rows if row.case.full) for i in range(len(builds))]
    median, worst = max(statistics.median(f) for f in full), max(f[-1] for f in full)
    context = max(abs(row.context[0] - row.context[1]) for row in rows)
    live = max(abs(row.model[0] - row.model[1]) for row in rows if row.case.live)
    dry = max(abs(row.model[0] - row.model[1]) for row in rows if not row.case.live)
    resident = [row.resident for row in rows if row.resident]
    exact = f"{live:.2f} MiB live, {dry:.2f} MiB in dry runs, whose table is rounded"
    after_load = [r.whole - r.ready for r in resident]
    after_use = [r.peak - r.used for r in resident]
    most_loaded = max(r.loaded - r.ready for r in resident)
    lines = [
        (live <= LOG and dry <= TABLE_ROUNDING, f"model: off by at most {exact}"),
        (context <= LOG, f"context (K/V, recurrent state, output): off by at most {context:.2f} MiB"),
        (not under, f"compute never under, on any build{''.join(f'; {u}' for u in under)}"),
        (median <= MEDIAN, f"models of real size: at most {median:.2%} of the whole server over in the median"),
        (worst <= WORST, f"models of real size: {worst:.2%} of the whole server over at worst"),
        (min(after_load) >= 0, f"resident after load never under the plan: the least is {min(after_load):+.1f} MiB"),
        (
            all(r.loaded - r.ready <= SLACK + r.ready * SHARE for r in resident),
            f"resident after load: at most {most_loaded:+.1f} MiB over without compute, which is not touched yet",
        ),
        (
            min(after_use) >= 0,
            f"resident with slots filled never under the peak: the least is {min(after_use):+.1f} MiB",
        ),
        (
            all(r.peak - r.used <= SLACK + r.used * SHARE for r in resident),
            f"resident with slots filled: at most {max(after_use):+.1f} MiB over, of {len(resident)} processes",
        ),
    ]
    drawn = sum(row.case.drawn for row in rows)
    shapes = len({row.case.name for row in rows})
    count = f"{len(rows)} combinations of {shapes} models, {drawn} of them drawn at random, on {len(builds)} builds."
    said = [f"- {'holds' if ok else 'DOES NOT HOLD'}: {text}" for ok, text in lines]
    return all(ok for ok, _ in lines), [count, "", *said]


def by_build(rows: Sequence[Row], builds: Sequence[str]) -> list[str]:
    """Markdown: how far the plan is over, as a share of the whole server."""
    out = ["| build | servers | | least | median | 95 of 100 | worst |", "|---|---|---|---|---|---|---|"]
    for i, build in enumerate(builds):
        for full, what in ((True, "real sizes"), (False, "small, most of them drawn")):
            shares = sorted(row.over(i) for row in rows if row.case.full == full)
            found = (shares[0], statistics.median(shares), shares[len(shares) * 95 // 100], shares[-1])
            out.append(f"| {build} | {what} | {len(shares)} | {' | '.join(f'{x:+.2%}' for x in found)} |")
    return out


def compute_table(rows: Sequence[Row], builds: Sequence[str]) -> list[str]:
    """Markdown: compute buffers of well-known models in MiB, planned and as each build says."""
    head = ["model", "flags", "planned", *builds]
    out = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        if row.case.full and not row.case.drawn:
            sizes = " | ".join(f"{size:.2f}" for size in row.compute)
            out.append(f"| {row.case.name} | {_flags(row.case)} | {sizes} |")
    return out


def live_table(rows: Sequence[Row]) -> list[str]:
    """Markdown: servers that were started for real, planned / real in MiB."""
    pair: Callable[[Sequence[float]], str] = lambda p: f"{p[0]:.2f} / {p[1]:.2f}"  # noqa: E731 - a cell's format
    out = ["| model | flags | weights | context | compute | loaded | filled |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if r := row.resident:
            cells = [pair(row.model), pair(row.context), pair(row.compute)]
            cells += (f"{r.loaded:.0f} / {r.ready:.0f}", f"{r.peak:.0f} / {r.used:.0f}")
            out.append(f"| {' | '.join((row.case.name, _flags(row.case), *cells))} |")
    return out


def _flags(case: Case) -> str:
    """The fields that a case varies, short."""
    c = case.config
    said = [f"c{c.n_ctx}", f"np{c.slots or 'auto'}", f"ub{c.n_ubatch}"]
    kinds = [c.cache_type_k] if c.cache_type_k == c.cache_type_v else [c.cache_type_k, c.cache_type_v]
    said += ["/".join(kinds)] if kinds != ["f16"] else []
    said += ["fa off"] if c.flash_attention == "off" else []
    said += ["unified"] if c.kv_unified else []
    said += ["embedding"] if c.embedding else []
    said += ["swa-full"] if c.swa_full else []
    said += [c.load_mode] if c.load_mode != "mmap" else []
    return " ".join([*said, *(["random"] if case.drawn else [])])


def _label(case: Case) -> str:
    """A case in words."""
    return f"{case.name} {_flags(case)}"


if __name__ == "__main__":
    sys.exit(main())
