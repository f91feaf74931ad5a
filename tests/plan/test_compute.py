"""Compute buffers: the bound is never under what a server says, on any build; and close to it where it counts.

`LAUNCH_BUILDS` names further llama-server binaries, separated by `:`; the embedded one is always asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.engine import stand_in_devices
from launcher.ir.architectures import ARCHITECTURES
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ArchitectureConfig, GpuConfig, ServerConfig
from launcher.ir.plan import Settings
from launcher.plan import estimate, settle
from launcher.plan.memory.compute import compute_parts
from launcher.plan.memory.layout import layers
from launcher.sizes import GIB, MIB

from . import drawn
from .asking import flags, number, says
from .fleets import GEMMA3_270M, HYBRID, MLA, QWEN3_30B, TINY, hardware, model_file, server, with_fields

SHAPES = int(os.environ.get("LAUNCH_FUZZ_SHAPES", "186"))
"""Random models held against each build; `make fuzz` takes thousands. Well-known ones are half as many."""
FIRST = int(os.environ.get("LAUNCH_FUZZ_SEED", "0"))
BUILDS = tuple(filter(None, os.environ.get("LAUNCH_BUILDS", "").split(":")))
EMBEDDED = "embedded"
LOG = MIB // 100
"""Bytes by which the server's log rounds two figures."""
ROUNDED = 0.021
"""MiB by which it rounds up to four."""
MEDIAN, WORST, MEDIAN_OF_SMALL = 0.01, 0.06, 0.025
"""Of what a server takes in all, the share by which the bound is over: of well-known models, and in the median of small
ones, of which the process itself is a large part."""

COMPARED = {name for name, known in ARCHITECTURES.items() if known.compared}


class Compared(NamedTuple):
    """One server. Bytes of compute planned and said, and what it takes in all; figures in MiB that must agree."""

    what: str
    planned: int
    said: int
    total: int
    exact: tuple[tuple[float, float], ...]


@pytest.fixture(params=[EMBEDDED, *BUILDS])
def build(request: pytest.FixtureRequest, llama_server: Path) -> Path:
    """The llama-server that is asked."""
    return llama_server if request.param == EMBEDDED else Path(request.param)


def asked(binary: Path, model: ModelFile, path: Path, config: ServerConfig) -> Compared:
    """Plan and server side by side, on the CPU alone."""
    (plan,) = estimate(model, settle(config, model, hardware(), build=number(binary)).settings)
    compute, others = says([str(binary), "-m", str(path), *flags(config), "--device", "none"], {})
    said = round(sum(compute.values()) * MIB)
    return Compared(
        what=f"{path.relative_to(path.parents[1])} {model.architecture.arch}",
        planned=plan.compute_bytes,
        said=said,
        total=plan.committed_bytes + plan.file_bytes - plan.compute_bytes + said,
        exact=tuple((getattr(plan, f"{name}_bytes") / MIB, size) for name, size in others.items()),
    )


def all_asked(
    build: Path, folder: Path, draw: Callable[[int, Path], tuple[ModelFile, Path, ServerConfig]], count: int
) -> list[Compared]:
    """`count` draws; every file is gone afterwards."""

    def one(seed: int) -> Compared:
        model, path, config = draw(seed, folder)
        try:
            return asked(build, model, path, config)
        finally:
            path.unlink()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(FIRST, FIRST + count)))


def over(rows: Sequence[Compared]) -> list[float]:
    """Shares of the whole server by which the plan is over, the largest last; none is under, and the rest is exact."""
    assert [row for row in rows if row.planned + LOG < row.said] == []
    assert [row for row in rows if any(abs(mine - real) > ROUNDED for mine, real in row.exact)] == []
    return sorted((row.planned - row.said) / row.total for row in rows)


def test_random_models(build: Path, tmp_path: Path) -> None:
    """Dimensions, contexts, slots, types and flags are drawn: never under; K/V, states and output exact."""
    shares = over(all_asked(build, tmp_path, drawn.drawing, SHAPES))
    assert median(shares) <= MEDIAN_OF_SMALL


def test_well_known_models(build: Path, tmp_path: Path) -> None:
    """Real sizes with drawn flags, hybrids with 16 slots among them: never under, and at most a little over."""
    shares = over(all_asked(build, tmp_path, drawn.full_size, SHAPES // 3))
    assert median(shares) <= MEDIAN
    assert shares[-1] <= WORST


def test_random_models_on_devices(build: Path, tmp_path: Path) -> None:
    """Layers on one or two RPC devices, some or all, experts or K/V on the host: neither side is ever under."""
    gpus = {f"rpc{i}": GpuConfig(backend="rpc", vram_bytes=80 * GIB, endpoint=f"127.0.0.1:{50052 + i}") for i in (0, 1)}
    host = msgspec.structs.replace(hardware(), gpus=gpus)
    for seed in range(FIRST, FIRST + SHAPES // 4):
        model, path, config = drawn.drawing(seed, tmp_path)
        config = drawn.placed(seed, config, model.architecture)
        settings = settle(config, model, host, build=number(build)).settings
        planned = {m.device: m.compute_bytes for m in estimate(model, settings)}
        placed = ["-ngl", "999" if config.n_gpu_layers == "all" else str(config.n_gpu_layers)]
        with stand_in_devices(build, len(config.devices)) as endpoints:
            names = ",".join(f"RPC{i}" for i in range(len(endpoints)))
            placed += ["--rpc", ",".join(endpoints), "--device", names]
            compute, _ = says(
                [str(build), "-m", str(path), *flags(config), *placed],
                dict(zip(endpoints, config.devices, strict=True)),
            )
        under = {name: size for name, size in compute.items() if planned[name] + LOG < size * MIB}
        assert under == {}, (seed, model.architecture.arch, config, planned)
        path.unlink()


def test_every_compared_architecture_is_drawn() -> None:
    """The random models leave no architecture out that the plan calls compared."""
    assert {name.removesuffix("-experts") for name in drawn.ARCHITECTURES} == COMPARED


# --- laws ----------------------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "dense": TINY,
    "hybrid": HYBRID,
    "latent": MLA,
    "sliding": GEMMA3_270M,
    "experts": QWEN3_30B,
    "encoder": with_fields(TINY, arch="bert", causal=False),
    "unknown": with_fields(QWEN3_30B, arch="glm99", n_ff_shexp=512),
}
SETTINGS = settle(server(n_ctx=4096), model_file(TINY), hardware()).settings


def bound(arch: ArchitectureConfig, settings: Settings) -> int:
    """Bytes on the host."""
    return next(compute_parts(arch, layers(arch), settings)).committed


def settled(arch: ArchitectureConfig, *, per_slot: int, slots: int, u: int, flash: bool) -> Settings:
    """Settings of a server with one stream a slot."""
    return msgspec.structs.replace(
        SETTINGS,
        slots=slots,
        n_ctx=per_slot * slots,
        n_ctx_seq=per_slot,
        n_batch=max(2048, u),
        n_ubatch=u,
        flash_attention=flash,
        kv_unified=False,
        n_expert_used=arch.n_expert_used,
        embedding=not arch.causal,
    )


@given(
    arch=st.sampled_from(sorted(ARCHITECTURES)),
    per_slot=st.integers(2, 512).map(lambda n: 256 * n),
    slots=st.sampled_from([1, 2, 4, 8, 16]),
    u=st.sampled_from([16, 64, 256, 512, 2048]),
    flash=st.booleans(),
    more=st.sampled_from(["per_slot", "slots", "u"]),
)
def test_more_never_takes_less(arch: str, per_slot: int, slots: int, u: int, flash: bool, more: str) -> None:
    """Twice the context, the slots or the micro-batch: the bound is the same or larger."""
    found = ARCHITECTURES[arch]
    sizes = {"per_slot": per_slot, "slots": slots, "u": u}
    less = settled(found, **sizes, flash=flash)
    assert bound(found, less) <= bound(found, settled(found, **sizes | {more: 2 * sizes[more]}, flash=flash))


@given(
    fields=st.dictionaries(
        st.sampled_from(["n_layer", "n_embd", "n_head", "n_head_kv", "n_vocab", "n_ff", "key_length", "n_expert"]),
        st.integers(-64, 1 << 20),
    ),
    slots=st.integers(0, 256),
    n_ctx=st.integers(0, 1 << 20),
    u=st.integers(0, 4096),
    used=st.integers(0, 1 << 40),
    name=st.sampled_from([*sorted(COMPARED), "glm99"]),
)
def test_any_settings_have_a_bound(
    fields: dict[str, int], slots: int, n_ctx: int, u: int, used: int, name: str
) -> None:
    """Sizes that no model has, too: a figure that is not negative, never an exception."""
    arch = with_fields(QWEN3_30B, **{"arch": name, "n_layer": 2} | fields)
    arch = with_fields(arch, n_layer=max(0, min(arch.n_layer, 8)))
    settings = msgspec.structs.replace(
        SETTINGS, slots=slots, n_ctx=n_ctx, n_ctx_seq=n_ctx, n_ubatch=u, n_expert_used=used
    )
    assert bound(arch, settings) >= 0


def test_an_unknown_architecture_gets_more() -> None:
    """What no server was asked about has a larger margin, and counts dense and expert layers alike."""
    settings = settled(QWEN3_30B, per_slot=4096, slots=2, u=512, flash=True)
    assert bound(with_fields(QWEN3_30B, arch="glm99"), settings) > bound(QWEN3_30B, settings) * 5 // 4
