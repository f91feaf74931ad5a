"""What is compared: models × server fields, a fixed set and random draws."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from launcher.catalog import describe
from launcher.ir.catalog import ModelFile
from launcher.ir.config import ServerConfig
from launcher.plan.memory import served_architecture
from tests.plan.fleets import server
from tests.tinymodels import ARCHITECTURES, write
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


class Case(NamedTuple):
    """One server. `live`: it is started for real, and its memory measured; else only its dry run is read."""

    name: str
    path: Path
    model: ModelFile
    config: ServerConfig
    live: bool
    drawn: bool


def cases(folder: Path, seed: int, draws: int) -> list[Case]:
    """Every tiny architecture started for real, every real shape as a sparse file, and `draws` random ones of each."""
    rng = random.Random(seed)
    found = [_case(name, folder, fields) for name in ARCHITECTURES for fields in TINY]
    found += [_case(name, folder, fields) for name in SHAPES for fields in FULL]
    found += [_case(rng.choice(ARCHITECTURES), folder, _draw(rng), drawn=True) for _ in range(draws)]
    found += [_case(rng.choice(tuple(SHAPES)), folder, _draw(rng), drawn=True) for _ in range(draws)]
    return found


def _draw(rng: random.Random) -> dict[str, Any]:
    """Random fields."""
    slots = rng.choice([1, 2, 3, 4, 6, None])
    fields: dict[str, Any] = {
        "n_ctx": rng.randrange(1024, 65536),
        "slots": slots,
        "n_ubatch": rng.choice([64, 128, 256, 512, 768, 1024, 2048]),
        "kv_unified": True if slots is None or rng.random() < 0.2 else None,
        "load_mode": rng.choice(["mmap", "none", "mlock"]),
    }
    if rng.random() < 0.3:
        return fields | {"flash_attention": "off"}
    kind = rng.choice(["f16", "f16", "q8_0", "q4_0", "bf16"])
    return fields | {"cache_type_k": kind, "cache_type_v": kind}


def _case(name: str, folder: Path, fields: dict[str, Any], *, drawn: bool = False) -> Case:
    """One case; what this build cannot do is taken out of `fields`."""
    live = name not in SHAPES
    path = write(name, folder) if live else write_full_size(name, folder)
    model = describe(str(path))
    arch = served_architecture(model)
    fields = dict(fields)
    if not arch.causal:
        fields |= {"embedding": True, "n_ctx": min(fields["n_ctx"], 4 * arch.n_ctx_train)}
        fields |= {"cache_type_k": "f16", "cache_type_v": "f16"}
    if arch.arch == "deepseek2":
        fields |= {"repack": False}  # this build aborts on latent attention with AMX
    return Case(name, path, model, server(**fields), live, drawn)
