"""Overrides that make a server smaller, each priced by planning the server again. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from launcher.errors import Fix
from launcher.ir.config import ServerConfig
from launcher.ir.plan import DeviceMemory
from launcher.plan.checks.planning import Planning
from launcher.plan.memory import add_up, pad
from launcher.plan.server import Planned, price
from launcher.sizes import GIB, MIB, gib

WORTH = 64 * MIB
"""Smaller savings are not worth a line."""
CONTEXT_FLOOR = 4096
"""No fix proposes a smaller context for a slot."""
BIGGEST = 3
SPEED, PRECISION, SLOTS, CONTEXT, QUALITY, TIER = range(6)
"""What a remedy loses, cheapest first: prompt speed, precision, concurrency, context, quality, the server."""
WIDE = frozenset({"f32", "f16", "bf16"})


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides of one server, what they lose, what they save in bytes."""

    loss: int
    override: str
    saves: int
    about: bool = False


def remedies(planning: Planning, device: str, excess: int) -> tuple[Fix, ...]:
    """Fixes for `device` being `excess` bytes over, cheapest loss first, then by what they save.

    Quantizations lose more the more they save, so among them the smallest saving comes first.
    """
    users = [(size, s) for s in planning.running if (size := _peak(add_up(s.parts), device))]
    biggest = [s for _, s in sorted(users, key=lambda pair: (-pair[0], pair[1].name))[:BIGGEST]]
    found = [r for server in biggest for r in _of(planning, server, device) if r.saves >= WORTH]
    found.sort(key=lambda r: (r.loss, r.saves if r.loss == QUALITY else -r.saves, r.override))
    return tuple(Fix(override=r.override, effect=_effect(r, excess)) for r in found)


def _effect(remedy: Remedy, excess: int) -> str:
    """`saves 61.2 GiB`, and whether that alone is enough."""
    about = "about " if remedy.about else ""
    size = f"{remedy.saves / GIB:.1f} GiB" if remedy.saves >= GIB else gib(remedy.saves)
    return f"saves {about}{size}" + (", enough" if remedy.saves >= excess and not remedy.about else "")


def _peak(memory: tuple[DeviceMemory, ...], device: str) -> int:
    """Resident peak on `device`."""
    return next((m.resident_peak_bytes for m in memory if m.device == device), 0)


def _of(planning: Planning, server: Planned, device: str) -> Iterator[Remedy]:
    """Every remedy of one server."""
    before = _peak(add_up(server.parts), device)
    cold = next((name for name, tier in planning.fleet.tiers.items() if tier.start == "never"), None)
    if cold and len(planning.running) > 1:
        yield Remedy(loss=TIER, override=f"{server.key}.tier={cold}", saves=before)
    for loss, changes in (*_changes(server), *_quantizations(planning, server)):
        override = " ".join(f"{server.key}.{field}={_spell(value)}" for field, value in changes.items())
        changed = msgspec.structs.replace(server.config, **changes)
        after = price(planning.fleet, planning.catalog, changed, planning.tables)
        if after is not None:
            yield Remedy(loss=loss, override=override, saves=before - _peak(after, device))
        elif "quantization" in changes:
            yield Remedy(loss=loss, override=override, saves=_file_saving(planning, server, changed), about=True)


def _spell(value: object) -> str:
    """A value as an override spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changes(server: Planned) -> Iterator[tuple[int, dict[str, object]]]:
    """Changes worth pricing, with what they lose. Contexts are halved, down to a floor."""
    config, settings = server.config, server.settings
    if config.repack:
        yield SPEED, {"repack": False}
    if settings.flash_attention and {settings.cache_type_k, settings.cache_type_v} & WIDE:
        yield PRECISION, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    if settings.slots > 1 and config.n_ctx_per_slot is not None:
        yield SLOTS, {"slots": settings.slots // 2}
    per_slot = settings.n_ctx_seq // (settings.slots if settings.kv_unified else 1) // 2
    if per_slot >= CONTEXT_FLOOR:
        if config.n_ctx_per_slot is not None:
            yield CONTEXT, {"n_ctx_per_slot": pad(per_slot)}
        else:
            yield CONTEXT, {"n_ctx": pad(per_slot) * settings.slots}


def _quantizations(planning: Planning, server: Planned) -> Iterator[tuple[int, dict[str, object]]]:
    """Other files of the model that are smaller than the present one."""
    model = planning.fleet.models.get(server.config.model)
    for name, file in (model.files if model else {}).items():
        known = planning.catalog.get(server.config.model, name)
        size = known.file_bytes if known else file.bytes
        if size is not None and size < server.model.file_bytes:
            yield QUALITY, {"quantization": name}


def _file_saving(planning: Planning, server: Planned, changed: ServerConfig) -> int:
    """What a file that the catalogue has not read would save, by its published size."""
    size = planning.fleet.models[changed.model].files[changed.quantization].bytes
    return server.model.file_bytes - size if size else 0
