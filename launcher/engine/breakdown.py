"""Parse llama-server's log of a `no_alloc` pass into the memory that it will take. Pure.

Sources: common/fit.cpp `common_memory_breakdown_print` (the table, and the same as JSON under `--log-jsonl`), then
llama-model-loader.cpp (the file that a pass is about), llama-context.cpp (`sched_reserve`, `output_reserve`), and for
the caches llama-kv-cache.cpp and llama-memory-recurrent.cpp.

Builds differ in order: up to b10434 a draft's table comes before the line `fitting params`, in b11434 both come after
it, the target's first. So a table belongs to the file that was read before it; only if target and draft are one file
does that line decide.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from launcher.base.decoding import decoded
from launcher.ir.proof import Breakdown, ProvenMemory
from launcher.sizes import MIB

END = "projected to use"
"""Logged by the server once the pass is over and nothing is allocated yet."""
RAM = "ram"
ROUNDING_MIB = 3
"""A row's sum may differ by this from its three parts, each rounded down."""
_ROW = re.compile(
    r"\|\s+- ([^|]+)\|\s*(?:-?\d+\s*=\s*-?\d+\s*\+\s*\(\s*)?"
    r"(\d{1,12})\s*=\s*(\d{1,12})\s*\+\s*(\d{1,12})\s*\+\s*(\d{1,12})\b"
)
_NOT_A_ROW = "common_memory_breakdown_print: |   - "
_FILE = re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.+?)(?: \(version .*\))?\s*$")
_FITTING = "fitting params to device memory"
_KV = re.compile(r"llama_kv_cache\w{0,40}: size =\s*(\d{1,12}\.?\d*) MiB")
_RECURRENT = re.compile(r"llama_memory_recurrent: size =\s*(\d{1,12}\.?\d*) MiB")
_OUTPUT = re.compile(r"output buffer size =\s*(\d{1,12}\.?\d*) MiB")
_COMPUTE = re.compile(r"sched_reserve:\s+(\S+)\s+compute buffer size =\s*(\d{1,12}\.?\d*) MiB")
LARGEST_MIB = 1 << 30
"""A PiB; no server takes more, and a larger figure is refused."""
_COMPILED = re.compile(r"\b([A-Z][A-Z0-9_]+) = 1\b")


class UnreadableError(Exception):
    """The log has no breakdown, or one that contradicts itself; the text says which."""


class Proven(NamedTuple):
    """The result of a dry run: the server's breakdown, its draft's if it has one, the CPU features of its build."""

    own: Breakdown
    draft: Breakdown | None
    compiled_for: tuple[str, ...] = ()


class _Row(msgspec.Struct):
    """One row of a table, in MiB. `description`: of a device, as JSON has it apart from its name."""

    name: str
    whole: int = msgspec.field(name="self")
    model: int
    context: int
    compute: int
    description: str = ""


class _Data(msgspec.Struct):
    """A breakdown as JSON."""

    rows: tuple[_Row, ...] = ()


class _Line(msgspec.Struct):
    """One line under `--log-jsonl`."""

    type: str = ""
    msg: str = ""
    data: _Data | None = None


class _Table(NamedTuple):
    """One pass: the file that it was about, whether it came after `fitting params`, and its breakdown."""

    file: str
    fitted: bool
    breakdown: Breakdown


def parse_dry_run(log: Sequence[str], *, model: str, draft: str | None, devices: Mapping[str, str]) -> Proven:
    """The memory that the server of file `model`, with a draft from file `draft`, logged in its dry run.

    `devices`: llama.cpp's name of a device (`CUDA0`), or for an RPC device its endpoint (`127.0.0.1:50052`), → ours;
    all other buffers are the host's. Raises UnreadableError; figures that do not add up are never returned.
    """
    tables = tuple(_tables(log, devices))
    if not tables:
        raise UnreadableError("the log has no memory breakdown")
    if draft is not None and draft != model and any(t.file in {model, draft} for t in tables):
        own = [t for t in tables if t.file == model]
        drafts = [t for t in tables if t.file == draft]
    else:
        own = [t for t in tables if t.fitted][:1] or list(tables[-1:])
        drafts = [t for t in tables if t not in own] if draft is not None else []
    if not own or (draft is not None and not drafts):
        whose = "the model" if not own else "the draft"
        raise UnreadableError(
            f"the log has no memory breakdown of {whose}, only of {', '.join(t.file for t in tables)}"
        )
    return Proven(own[-1].breakdown, drafts[-1].breakdown if drafts else None, compiled_for(log))


def compiled_for(log: Iterable[str]) -> tuple[str, ...]:
    """The CPU features that a build was compiled for, as its `system_info` line names them (`AVX2`, `AMX_INT8`)."""
    line = next((line for line in log if "system_info:" in line), "")
    return tuple(dict.fromkeys(_COMPILED.findall(line)))


def _tables(log: Iterable[str], devices: Mapping[str, str]) -> Iterator[_Table]:
    file, fitted = "", False
    lines: list[str] = []
    rows: list[_Row] = []
    for raw in log:
        line, table = _decoded(raw)
        row = None if table else _row(line)
        if row is not None:
            rows.append(row)
            continue
        if table or rows:  # b11434 writes the same table twice, as text and then as JSON
            yield _Table(file, fitted, _breakdown(table or rows, lines, devices))
            rows, lines = [], []
        if not table:
            found = _FILE.search(line)
            file, fitted = found[1] if found else file, fitted or _FITTING in line
            lines.append(line)
    if rows:
        yield _Table(file, fitted, _breakdown(rows, lines, devices))


def _decoded(raw: str) -> tuple[str, list[_Row]]:
    """The text of a log line, plain or JSON, and the rows if it is a breakdown as JSON."""
    if not raw.startswith("{"):
        return raw, []
    line = decoded(raw, _Line)
    if line is None:
        return raw, []
    if line.type == "fit_memory_breakdown" and line.data is not None:
        rows = (msgspec.structs.replace(row, name=f"{row.name} ({row.description})") for row in line.data.rows)
        return "", [_checked(row) for row in rows]
    return line.msg, []


def _row(line: str) -> _Row | None:
    """The table row in a line; None for other lines. Raises UnreadableError for a row that cannot be read."""
    if _NOT_A_ROW not in line:
        return None
    match = _ROW.search(line)
    if match is None:
        raise UnreadableError(f"a row of the memory breakdown cannot be read: {line.strip()[:160]}")
    whole, model, context, compute = map(int, match.groups()[1:])
    return _checked(_Row(match[1].rstrip(), whole, model, context, compute))


def _checked(row: _Row) -> _Row:
    """Return `row` if its parts add up to its sum. Raises UnreadableError otherwise."""
    sizes = (row.whole, row.model, row.context, row.compute)
    if not all(0 <= size < LARGEST_MIB for size in sizes):
        raise UnreadableError(f"no server takes what a row of the memory breakdown says: {row.name} {sizes}")
    if abs(row.whole - row.model - row.context - row.compute) > ROUNDING_MIB:
        raise UnreadableError(f"a row of the memory breakdown does not add up: {row.name} {sizes}")
    return row


def _breakdown(rows: Iterable[_Row], lines: Iterable[str], devices: Mapping[str, str]) -> Breakdown:
    text = "\n".join(lines)
    model: defaultdict[str, int] = defaultdict(int)
    context: defaultdict[str, int] = defaultdict(int)
    compute: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        place = _place(row.name, devices)
        model[place] += row.model
        context[place] += row.context
        compute[place] += row.compute
    exact: defaultdict[str, float] = defaultdict(float)
    for name, size in _COMPUTE.findall(text):
        exact[_place(name, devices)] += float(size)
    said_before = sum(exact.values())
    if not any((*model.values(), *context.values(), *compute.values())) and not 0 < said_before <= ROUNDING_MIB:
        raise UnreadableError("a memory breakdown has nothing in it")
    memory = tuple(
        ProvenMemory(
            device=place,
            model_bytes=model[place] * MIB,
            context_bytes=context[place] * MIB,
            compute_bytes=round(_refined(compute[place], exact.get(place)) * MIB),
        )
        for place in sorted(model, key=lambda p: (p != RAM, p))
    )
    kv, recurrent, output = (_sum(pattern, text) for pattern in (_KV, _RECURRENT, _OUTPUT))
    stated, rounded = sum(context.values()) * MIB, ROUNDING_MIB * MIB * max(1, len(model))
    if not kv + recurrent - rounded <= stated <= kv + recurrent + output + rounded:  # tables leave the output out
        raise UnreadableError(
            f"a memory breakdown has {stated // MIB} MiB of context, and the log before it "
            f"{(kv + recurrent + output) // MIB} MiB"
        )
    return Breakdown(memory=memory, kv_bytes=kv, recurrent_bytes=recurrent, output_bytes=output)


def _refined(rounded: float, exact: float | None) -> float:
    """A table's MiB (rounded down), or the figure with two places that the log has before it, if the two agree."""
    return exact if exact is not None and abs(exact - rounded) <= ROUNDING_MIB else rounded


def _place(name: str, devices: Mapping[str, str]) -> str:
    """The device that a buffer type or a table's row is on.

    A row is `RPC0 (127.0.0.1:50052)`, its buffers `RPC0[127.0.0.1:50052]`: two RPC servers both call their first device
    RPC0, so the endpoint decides. `CUDA_Host` is the host's.
    """
    for theirs, ours in devices.items():
        if ":" in theirs and re.search(rf"[(\[]{re.escape(theirs)}[)\]]", name):
            return ours
    return next((ours for theirs, ours in devices.items() if re.match(rf"{re.escape(theirs)}(?!\w)", name)), RAM)


def _sum(pattern: re.Pattern[str], text: str) -> int:
    return round(sum(float(size) for size in pattern.findall(text)) * MIB)
