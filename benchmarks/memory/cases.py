"""What is compared: models × server fields, a fixed set and random draws."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launcher.catalog.files import describe
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ServerConfig
from tests.plan import drawn
from tests.plan.fleets import server
from tests.tinymodels import ARCHITECTURES, shape_of, write
from tests.tinymodels.full_size import SHAPES, write_full_size

TINY: tuple[dict[str, Any], ...] = (
    {"n_ctx": 8192, "slots": 2, "n_ubatch": 512},
    {"n_ctx": 32768, "slots": None, "n_ubatch": 256, "load_mode": "none"},
    {"n_ctx": 5000, "slots": 3, "n_ubatch": 512, "flash_attention": "off", "load_mode": "mlock"},
)
FULL: tuple[dict[str, Any], ...] = (
    {"n_ctx": 8192, "slots": 1},
    {"n_ctx": 65536, "slots": 4, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    {"n_ctx": 16384, "slots": None, "n_ubatch": 1024},
    {"n_ctx": 5000, "slots": 3, "n_ubatch": 256, "flash_attention": "off"},
)
_MIDDLING: dict[str, int] = {"n_head": 16, "n_head_kv": 4, "head_dim": 64, "n_vocab": 32000}
_MIXED: dict[str, int] = {"n_ff_exp": 256, "n_expert": 32, "n_expert_used": 4}
MIDDLING: dict[str, dict[str, int]] = {
    "llama": {**_MIDDLING, "n_embd": 1024, "n_layer": 6, "n_ff": 4096},
    "qwen3moe": {**_MIDDLING, **_MIXED, "n_embd": 512, "n_layer": 6},
    "granitehybrid": {**_MIDDLING, **_MIXED, "n_embd": 512, "n_layer": 8, "d_inner": 1024, "dt_rank": 16},
}
"""Models of hundreds of megabytes that are started for real: there 5 % is more than a page or two."""


LIVE_DRAWS = 5
"""Random draws that are started for real: their prompts take time."""


class Case(NamedTuple):
    """One server. `live`: it is started for real, and its memory measured; else only its dry run is read.

    `full`: a model of real size.
    """

    name: str
    path: Path
    model: ModelFile
    config: ServerConfig
    live: bool
    drawn: bool
    full: bool = False


def cases(folder: Path, seed: int, draws: int) -> Iterator[Case]:
    """Every tiny architecture started for real, every real shape as a sparse file, then random draws.

    `draws` small models and a quarter as many servers of real shapes are read by their dry run, a few are started.
    """
    yield from (_live(name, folder, fields) for name in ARCHITECTURES for fields in TINY)
    for name, sizes in MIDDLING.items():
        yield _live(name, folder, {"n_ctx": 2048, "slots": 2}, quantization="q8_0", sizes=sizes)
    for name in SHAPES:
        path = write_full_size(name, folder)
        model = describe(str(path))
        yield from (Case(name, path, model, _possible(model, f), live=False, drawn=False, full=True) for f in FULL)
    rng = random.Random(seed)
    for _ in range(LIVE_DRAWS):
        name = rng.choice(ARCHITECTURES)
        yield _live(name, folder, _draw(rng), sizes=_sizes(rng, name), random_draw=True)
    for i in range(seed, seed + draws):
        model, path, config = drawn.drawing(i, folder)
        yield Case(_described(model.architecture.arch, model), path, model, config, live=False, drawn=True)
        path.unlink()
    for i in range(seed, seed + draws // 4):
        model, path, config = drawn.full_size(i, folder)
        yield Case(path.stem, path, model, config, live=False, drawn=True, full=True)
        path.unlink()


def _described(name: str, model: ModelFile) -> str:
    """A drawn model in short: architecture, layers, width, heads."""
    a = model.architecture
    heads = "/".join(str(v if isinstance(v, int) else max(v)) for v in (a.n_head, a.n_head_kv))
    return f"{name} {a.n_layer}×{a.n_embd} {heads}·{a.key_length}"


def _sizes(rng: random.Random, name: str) -> dict[str, int]:
    """Other sizes of a tiny model: those that its loader does not tie to each other."""
    sizes = {"n_vocab": rng.randrange(400, 9000), "n_layer": shape_of(name).n_layer * rng.choice([1, 2])}
    return sizes | ({"n_ff": 32 * rng.randrange(4, 40)} if shape_of(name).n_ff else {})


def _draw(rng: random.Random) -> dict[str, Any]:
    """Random fields."""
    slots = rng.choice([1, 2, 3, 4, 6, None])
    fields: dict[str, Any] = {
        "n_ctx": rng.randrange(1024, 30000),
        "slots": slots,
        "n_ubatch": rng.choice([64, 128, 256, 512, 768, 1024, 2048]),
        "kv_unified": True if slots is None or rng.random() < 0.2 else None,
        "load_mode": rng.choice(["mmap", "none", "mlock"]),
    }
    if rng.random() < 0.3:
        return fields | {"flash_attention": "off"}
    kind = rng.choice(["f16", "f16", "q8_0", "q4_0", "bf16"])
    return fields | {"cache_type_k": kind, "cache_type_v": kind}


def _live(
    name: str,
    folder: Path,
    fields: dict[str, Any],
    *,
    quantization: str = "f16",
    sizes: dict[str, int] | None = None,
    random_draw: bool = False,
) -> Case:
    """One model with weights."""
    path = write(name, folder, quantization=quantization, **(sizes or {}))
    model = describe(str(path))
    shown = _described(name, model) if sizes else name
    return Case(shown, path, model, _possible(model, fields), live=True, drawn=random_draw)


def _possible(model: ModelFile, fields: dict[str, Any]) -> ServerConfig:
    """A server with `fields`, less what this build cannot do."""
    arch = model.architecture
    if not arch.causal:
        fields = fields | {"embedding": True, "n_ctx": min(fields["n_ctx"], 4 * arch.n_ctx_train)}
        fields |= {"cache_type_k": "f16", "cache_type_v": "f16"}
    config = server(**fields)
    # this build aborts on latent attention with AMX
    return msgspec.structs.replace(config, repack=False) if arch.arch == "deepseek2" else config
