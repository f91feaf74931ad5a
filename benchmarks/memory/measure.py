"""The server's own figures for a case: its buffers, and for a live one what its process holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.memory.cases import Case
from launcher.engine import dry_run
from launcher.hardware import take_inventory
from launcher.ir.plan import DeviceMemory, Settings
from launcher.plan import estimate, settle
from launcher.sizes import KIB, MIB
from tests.plan.asking import flags, load_words, number, says
from tests.plan.fleets import hardware
from tests.plan.test_real_server import BUFFER
from tests.tinymodels.running import BARE, RunningServer

FILL = 16_384
"""Tokens up to which every slot is filled; beyond, one slot is."""
PATIENCE_S = 600.0
_RSS = re.compile(r"^Rss:\s+(\d+) kB", re.MULTILINE)


class Resident(NamedTuple):
    """RSS of one process in MiB: once ready, and after requests that filled its slots; and what was planned for both.

    Nothing has touched the compute buffer before the first request: `loaded` is the plan without it.
    """

    loaded: float
    ready: float
    whole: float
    peak: float
    used: float


class Row(NamedTuple):
    """One comparison, in MiB: (planned, real) a component; of compute what each further build says comes after.

    `rest` is all that the plan has beside compute.
    """

    case: Case
    model: tuple[float, float]
    context: tuple[float, float]
    compute: tuple[float, ...]
    rest: float
    resident: Resident | None

    def over(self, build: int) -> float:
        """Of what the server takes in all, the share by which the plan is over for `build`; below 0 it is under."""
        planned, said = self.compute[0], self.compute[1 + build]
        return (planned - said) / (self.rest + said)


def compare(binaries: Sequence[Path], case: Case) -> Row:
    """Plan and servers side by side. Weights are compared as the server logs them: by mapping live, by tensor dry.

    All but compute is the first binary's, which alone is started for real.
    """
    binary = binaries[0]
    host = hardware(features=take_inventory().features)
    settings = settle(case.config, case.model, host, build=number(binary)).settings
    (plan,) = estimate(case.model, settings)
    context = (plan.kv_bytes + plan.recurrent_bytes + plan.output_bytes) / MIB
    command = ["-m", str(case.path), *flags(case.config), "--device", "none"]
    dry = dry_run([str(binary), *command], {}, model=str(case.path)).own
    proven = (dry.kv_bytes + dry.recurrent_bytes + dry.output_bytes) / MIB
    unmapped = msgspec.structs.replace(settings, load_mode="none")
    model = (estimate(case.model, unmapped)[0].model_bytes / MIB, sum(m.model_bytes for m in dry.memory) / MIB)
    said = [sum(says([str(b), *command], {})[0].values()) for b in binaries]
    rest = (plan.planned_bytes - plan.compute_bytes) / MIB
    row = Row(case, model, (context, proven), (plan.compute_bytes / MIB, *said), rest, None)
    if not case.live:
        return row
    real, resident = _run(binary, case, settings, plan)
    return row._replace(
        model=(plan.model_bytes / MIB, real["model"]),
        compute=(row.compute[0], max(real["compute"], said[0]), *said[1:]),
        resident=resident,
    )


def _run(binary: Path, case: Case, settings: Settings, plan: DeviceMemory) -> tuple[dict[str, float], Resident]:
    """Logged buffers, and what the process holds."""
    flags_ = (*BARE, "-lv", "4", "-t", "1", "-tb", "1")  # two threads on shared cores wait for each other
    words: tuple[str | Path, ...] = ("-m", case.path, *flags(case.config), *load_words(binary, case.config.load_mode))
    with RunningServer(binary, *words, flags=flags_, timeout_s=PATIENCE_S) as running:
        ready = _rss(running.pid)
        _fill(running, settings)
        used = _rss(running.pid)
        log = running.log()
    sums = dict.fromkeys(("model", "KV", "RS", "output", "compute"), 0.0)
    for kind, size in BUFFER.findall(log):
        sums[kind] += float(size)
    peak = (plan.peak_bytes + plan.file_bytes) / MIB
    loaded = (plan.planned_bytes - plan.compute_bytes) / MIB
    return sums, Resident(loaded, ready, plan.planned_bytes / MIB, peak, used)


def _fill(running: RunningServer, settings: Settings) -> None:
    """Fill every slot with one prompt, one where that takes too long; an encoder's micro-batch."""
    tokens = settings.n_ctx_per_slot - 2
    body: dict[str, list[int] | int]
    if settings.embedding:
        path, body = "/embedding", {"content": [7] * min(tokens, settings.n_ubatch - 2)}
    else:
        path, body = "/completion", {"prompt": [7] * tokens, "n_predict": 1}
    shared = settings.n_ctx // settings.n_ctx_per_slot if settings.kv_unified else settings.slots
    count = min(settings.slots, shared) if settings.slots * tokens <= FILL else 1

    def post(_: int) -> int:
        try:
            return running.post(path, body)[0]
        except UnicodeDecodeError:  # random weights say invalid UTF-8
            return HTTPStatus.OK

    with ThreadPoolExecutor(count) as pool:
        answers = set(pool.map(post, range(count)))
    assert answers <= {HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR}, answers  # 500: invalid UTF-8 too


def _rss(pid: int) -> float:
    """MiB in RAM, libraries and touched pages of mapped files included."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = _RSS.search(text)
    assert found, text
    return int(found[1]) * KIB / MIB
