"""Run every case, print the table and the verdict; `--write` puts both into docs/memory.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.memory.cases import Case, cases
from benchmarks.memory.measure import Row, compare
from launcher.engine import EMBEDDED, DryRunError, probe, resolve_binary
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
TABLE_ROUNDING = 6.0
"""MiB that the breakdown of a dry run rounds away: 1 a buffer type."""


def main() -> int:
    """0 where every acceptance line holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random draws")
    parser.add_argument(
        "--random", type=int, default=80, help="random draws: other dimensions, contexts, slots and flags"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    binary = Path(resolve_binary(EngineConfig(binary=EMBEDDED, dialect="")))
    rows: list[Row] = []
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), args.seed, args.random):
            try:
                rows.append(compare(binary, case))
            except DryRunError as error:
                refused.append(f"{_label(case)}: {error}")
    good, verdict = judge(rows)
    command = f"python -m benchmarks.memory --seed {args.seed} --random {args.random} --write"
    host = take_inventory()
    version = probe(binary, None).version.removeprefix("version: ")
    head = f"`{command}`; llama-server {version}, {host.cpu_model} ({', '.join(host.features)})."
    text = "\n".join([head, "", *verdict, *(f"- refused by the server: {r}" for r in refused), "", *table(rows), ""])
    print(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0 if good else 1


def judge(rows: Sequence[Row]) -> tuple[bool, list[str]]:
    """Whether all acceptance lines hold, and each of them with its figures."""
    over = [_over(*row.compute) for row in rows]
    equal = sum(not o for o in over)
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
        (min(over) >= 0, f"compute never under: the least is {min(over):+.2%}"),
        (statistics.median(over) <= 0.02, f"compute: median {statistics.median(over):+.2%}"),
        (max(over) <= 0.10, f"compute: worst {max(over):+.2%}; {equal} of {len(over)} equal to the log's rounding"),
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
    count = f"{len(rows)} combinations of {shapes} models, {drawn} of them drawn at random."
    said = [f"- {'holds' if ok else 'DOES NOT HOLD'}: {text}" for ok, text in lines]
    return all(ok for ok, _ in lines), [count, "", *said]


def _over(planned: float, real: float) -> float:
    """Share by which `planned` differs from `real`, beyond what the log rounds."""
    return (planned - real) / real if abs(planned - real) > HALF else 0.0


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown, planned / real in MiB."""
    pair: Callable[[tuple[float, float]], str] = lambda p: f"{p[0]:.2f} / {p[1]:.2f}"  # noqa: E731 - a cell's format
    out = [
        "| model | flags | weights | context | compute | over | loaded | filled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = _over(*row.compute)
        over = f"{share:+.1%}" if share else "="
        r = row.resident
        loaded, filled = (f"{r.loaded:.0f} / {r.ready:.0f}", f"{r.peak:.0f} / {r.used:.0f}") if r else ("", "")
        sizes = (pair(row.model), pair(row.context), pair(row.compute))
        out.append(f"| {' | '.join((row.case.name, _flags(row.case), *sizes, over, loaded, filled))} |")
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
