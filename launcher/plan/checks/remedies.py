"""Overrides that make a server smaller, or leave a service out, each priced by planning again. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from launcher.errors import Fix
from launcher.ir.plan import RAM, DevicePlan, ServerPlan
from launcher.plan.checks.planning import Planning
from launcher.plan.devices import device_plans, elect, share
from launcher.plan.hosts import tier_of
from launcher.plan.memory.layout import pad
from launcher.plan.memory.process import add_up
from launcher.plan.server import plan_server
from launcher.sizes import GIB, MIB, gib

WORTH = 64 * MIB
"""Bytes below which a saving is not proposed."""
CONTEXT_FLOOR = 4096
"""Tokens per slot below which no fix goes."""
MOST, SHOWN, LONGEST = 12, 3, 6
"""Servers that are considered, those of them that are listed for each loss, and changes together worth reading."""
SPEED, PRECISION, SLOTS, CONTEXT, QUALITY, TIER = range(6)
"""What a remedy loses, cheapest first: prompt speed, precision, concurrency, context, quality, the server."""
WIDE = frozenset({"f32", "f16", "bf16"})


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """Changes to one server (or, with `group`, service), what is lost by them, and bytes saved."""

    loss: int
    server: str
    group: str = "servers"
    changes: dict[str, object]
    saves: int
    about: bool = False

    @property
    def override(self) -> str:
        """The changes as command-line overrides."""
        spelled = {f: str(v).lower() if isinstance(v, bool) else v for f, v in self.changes.items()}
        return " ".join(f"{self.group}.{self.server}.{field}={value}" for field, value in spelled.items())


def remedies(planning: Planning, device: str, excess: int) -> tuple[Fix, ...]:
    """Fixes for `device` being `excess` bytes over, the cheapest loss first, then by bytes saved.

    For each kind of loss, the servers that save most. Quantizations lose more the more they save, so among them the
    smallest saving comes first. If only stopping a server is enough, combinations that are enough come last.
    """
    pooled = planning.fleet.hardware.pooled if device == RAM else frozenset()
    users = [(size, s) for s in planning.running if (size := _peak(s, {device, *pooled}))]
    biggest = [s for _, s in sorted(users, key=lambda pair: (-pair[0], pair[1].name))[:MOST]]
    every = [r for server in biggest for r in _of(planning, server, device) if r.saves >= WORTH]
    every += [r for r in _without_services(planning, device) if r.saves >= WORTH]
    listed = [r for loss in range(TIER + 1) for r in _listed([r for r in every if r.loss == loss])]
    fixes = [Fix(override=r.override, effect=_effect(r.saves, excess, about=r.about)) for r in listed]
    if not any(r.saves >= excess and not r.about and r.loss != TIER for r in listed):
        fixes += _together(planning, device, excess, [r for r in every if not r.about])
    return tuple(fixes)


def _listed(same: list[Remedy]) -> list[Remedy]:
    """Among remedies with the same loss, those of the servers that save most."""
    best: dict[str, int] = {}
    for remedy in same:
        best[remedy.server] = max(remedy.saves, best.get(remedy.server, 0))
    servers = sorted(best, key=lambda name: (-best[name], name))[:SHOWN]
    kept = [r for r in same if r.server in servers]
    return sorted(kept, key=lambda r: (r.saves if r.loss == QUALITY else -r.saves, r.override))


def _together(planning: Planning, device: str, excess: int, every: list[Remedy]) -> Iterator[Fix]:
    """The fewest changes that are enough together: without stopping a server if possible, else the largest ones."""
    keeping = sorted((r for r in every if r.loss != TIER), key=lambda r: (r.loss, -r.saves, r.override))
    giving_up = sorted((r for r in every if r.loss == TIER), key=lambda r: (-r.saves, r.override))
    for candidates in (keeping, giving_up):
        chosen = _enough(planning, device, excess, candidates)
        if 1 < len(chosen) <= LONGEST:
            merged = _merged(chosen)
            groups = {r.server: r.group for r in chosen}
            whole = (Remedy(loss=0, server=s, group=groups[s], changes=c, saves=0) for s, c in merged.items())
            override = " ".join(r.override for r in whole)
            yield Fix(override=override, effect=_effect(_saved(planning, device, merged), excess))
        if chosen:
            return


def _enough(planning: Planning, device: str, excess: int, candidates: list[Remedy]) -> list[Remedy]:
    """The first `candidates`, in order, that are enough together, none superfluous; () if all are too few."""
    chosen: list[Remedy] = []
    for remedy in candidates:
        chosen.append(remedy)
        if sum(r.saves for r in chosen) >= excess and _saved(planning, device, _merged(chosen)) >= excess:
            break
    else:
        return []
    for remedy in sorted(chosen, key=lambda r: r.saves):
        fewer = [r for r in chosen if r is not remedy]
        if _saved(planning, device, _merged(fewer)) >= excess:
            chosen = fewer
    return chosen


def _merged(chosen: list[Remedy]) -> dict[str, dict[str, object]]:
    merged: dict[str, dict[str, object]] = {}
    for remedy in chosen:
        merged[remedy.server] = merged.get(remedy.server, {}) | remedy.changes
    return merged


def _saved(planning: Planning, device: str, changes: dict[str, dict[str, object]]) -> int:
    """Bytes that `changes` save on `device`: planned again, with sharing and exclusive groups.

    A service among them is left out.
    """
    servers = [_changed(planning, s, changes.get(s.name, {})) for s in planning.servers]
    services = tuple(s for s in planning.services if s.name not in changes)
    after = device_plans(planning.fleet, share(elect(servers)), services)
    return _need(planning.devices, device) - _need(after, device)


def _changed(planning: Planning, server: ServerPlan, changes: dict[str, object]) -> ServerPlan:
    """`server` planned with `changes`, alone, without sharing."""
    if changes:
        config = msgspec.structs.replace(server.config, **changes)
        planned, _ = plan_server(planning.fleet, planning.catalog, server.name, config, planning.tables)
        return planned or server
    return msgspec.structs.replace(server, memory=add_up(server.parts))


def _need(devices: Sequence[DevicePlan], device: str) -> int:
    return next(max(d.planned_bytes, d.peak_bytes) for d in devices if d.name == device)


def _effect(saves: int, excess: int, *, about: bool = False) -> str:
    """`saves 61.2 GiB`, and whether that alone is enough."""
    size = f"{saves / GIB:.1f} GiB" if saves >= GIB else gib(saves)
    return f"saves {'about ' if about else ''}{size}" + (", enough" if saves >= excess and not about else "")


def _peak(server: ServerPlan, devices: set[str]) -> int:
    return sum(m.resident_peak_bytes for m in add_up(server.parts) if m.device in devices)


def _of(planning: Planning, server: ServerPlan, device: str) -> Iterator[Remedy]:
    """Every remedy for one server. A file without a header in the catalogue is priced by its published size."""
    cold = tier_of(planning.fleet, "never")
    alternatives: list[tuple[int, dict[str, object]]] = [*_changes(server), *_quantizations(planning, server)]
    if cold and len(planning.running) > 1:
        alternatives.append((TIER, {"tier": cold}))
    for loss, changes in alternatives:
        config = msgspec.structs.replace(server.config, **changes)
        known = planning.catalog.get(config.model, config.quantization)
        if known is not None and known.parts:
            saves = _saved(planning, device, {server.name: changes})
            yield Remedy(loss=loss, server=server.name, changes=changes, saves=saves)
        elif "quantization" in changes:
            published = planning.fleet.models[config.model].files[config.quantization].bytes or server.model.file_bytes
            saves = server.model.file_bytes - published
            yield Remedy(loss=loss, server=server.name, changes=changes, saves=saves, about=True)


def _without_services(planning: Planning, device: str) -> Iterator[Remedy]:
    """Remedies that leave a running service out. Names of services are never servers'."""
    cold = tier_of(planning.fleet, "never")
    for service in planning.services if cold else ():
        if service.config.builtin is None and service.config.ram_bytes and service.starts != "never":
            saves = _saved(planning, device, {service.name: {"tier": cold}})
            yield Remedy(loss=TIER, server=service.name, group="services", changes={"tier": cold}, saves=saves)


def _changes(server: ServerPlan) -> Iterator[tuple[int, dict[str, object]]]:
    """Changes to price, with what each loses. Contexts are halved, down to a floor."""
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


def _quantizations(planning: Planning, server: ServerPlan) -> Iterator[tuple[int, dict[str, object]]]:
    model = planning.fleet.models.get(server.config.model)
    for name, file in (model.files if model else {}).items():
        known = planning.catalog.get(server.config.model, name)
        size = known.file_bytes if known else file.bytes
        if size is not None and size < server.model.file_bytes:
            yield QUALITY, {"quantization": name}
