"""llama-server's log of a `no_alloc` pass → what it will take. Pure.

Source: common/fit.cpp `common_memory_breakdown_print`, llama-kv-cache.cpp, llama-memory-recurrent.cpp and
llama-context.cpp (`sched_reserve`, `output_reserve`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from launcher.ir.proof import Breakdown, ProvenMemory
from launcher.sizes import MIB

END = "projected to use"
"""What the server logs once the pass is over and nothing is allocated yet."""
RAM = "ram"
_ROW = re.compile(r"\|\s+- (\S+).*?(\d+) \+\s+(\d+) \+\s+(\d+)[^|]*\|")
_KV = re.compile(r"llama_kv_cache\w*: size =\s*([\d.]+) MiB")
_RECURRENT = re.compile(r"llama_memory_recurrent: size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size =\s*([\d.]+) MiB")
_COMPUTE = re.compile(r"sched_reserve:\s+(\S+)\s+compute buffer size =\s*([\d.]+) MiB")
_HEAD = "memory breakdown [MiB]"


def parse_breakdowns(log: Iterable[str], devices: Mapping[str, str] | None = None) -> tuple[Breakdown, ...]:
    """One breakdown a model, in the log's order: a draft's comes before its target's.

    `devices`: llama.cpp's name (`CUDA0`, `RPC0`) → ours, of those that count on their own; all others are the host.
    """
    found: list[Breakdown] = []
    lines: list[str] = []
    rows: list[tuple[str, int, int, int]] = []
    for line in log:
        if rows and "|" not in line:
            found.append(_breakdown(rows, lines, devices or {}))
            rows, lines = [], []
        lines.append(line)
        match = _ROW.search(line)
        if match and _HEAD not in line:
            rows.append((match[1], int(match[2]), int(match[3]), int(match[4])))
    if rows:
        found.append(_breakdown(rows, lines, devices or {}))
    return tuple(found)


def _breakdown(rows: list[tuple[str, int, int, int]], lines: list[str], devices: Mapping[str, str]) -> Breakdown:
    """Rows of one table with the sizes logged before it."""
    text = "".join(lines)
    model: defaultdict[str, int] = defaultdict(int)
    context: defaultdict[str, int] = defaultdict(int)
    compute: defaultdict[str, float] = defaultdict(float)
    for name, m, c, w in rows:
        place = _place(name, devices)
        model[place] += m
        context[place] += c
        compute[place] += w
    exact: defaultdict[str, float] = defaultdict(float)
    for name, size in _COMPUTE.findall(text):
        exact[_place(name, devices)] += float(size)
    return Breakdown(
        memory=tuple(
            ProvenMemory(
                device=place,
                model_bytes=model[place] * MIB,
                context_bytes=context[place] * MIB,
                compute_bytes=round(exact.get(place, compute[place]) * MIB),
            )
            for place in sorted(model, key=lambda p: (p != RAM, p))
        ),
        kv_bytes=_sum(_KV, text),
        recurrent_bytes=_sum(_RECURRENT, text),
        output_bytes=_sum(_OUTPUT, text),
    )


def _place(name: str, devices: Mapping[str, str]) -> str:
    """The device that a buffer type is on: `RPC0[127.0.0.1:50052]` is RPC0, `CUDA_Host` the host."""
    return next((ours for theirs, ours in devices.items() if re.match(rf"{theirs}(?!\w)", name)), RAM)


def _sum(pattern: re.Pattern[str], text: str) -> int:
    """Bytes of all matches."""
    return round(sum(float(size) for size in pattern.findall(text)) * MIB)
