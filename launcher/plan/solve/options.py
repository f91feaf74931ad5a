"""The options of a server in each step, best first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from launcher.ir.architectures import trunk
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.plan.memory.layout import AUTO_SLOTS

STEP = 1024
"""Tokens per slot by which contexts are varied, or a share of the training context (see `fineness`)."""
STEPS = 128
STEPS_MIN = 8
UNIT = 1_000_000
"""Shares of a model are counted in millionths."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One choice: its cost (less is better) and the fields that it sets."""

    cost: int
    changes: dict[str, Any]


def layers(fleet: FleetConfig, catalog: Catalog, server: ServerConfig, _sharers: int) -> Iterator[Option]:
    """From all layers on devices to none, where `n_gpu_layers` is auto. Cost: the share left on the host."""
    model = catalog.get(server.model, server.quantization)
    if server.n_gpu_layers != "auto" or model is None or not _devices(fleet, server):
        return
    whole = model.architecture.n_layer + 1
    for count in range(whole, -1, -1):
        yield Option(cost=(whole - count) * UNIT // whole, changes={"n_gpu_layers": count})


def experts(fleet: FleetConfig, catalog: Catalog, server: ServerConfig, _sharers: int) -> Iterator[Option]:
    """From no expert bank on the host to the written `n_cpu_moe`. Cost: the share of layers whose banks are there."""
    model = catalog.get(server.model, server.quantization)
    if "experts" not in server.fill or model is None or not _devices(fleet, server):
        return
    whole = trunk(model.architecture)
    for count in range(min(server.n_cpu_moe, whole) + 1):
        yield Option(cost=count * UNIT // max(1, whole), changes={"n_cpu_moe": count})


def quantizations(fleet: FleetConfig, catalog: Catalog, server: ServerConfig, _sharers: int) -> Iterator[Option]:
    """From the largest file of the model to the written quantization. Cost: bytes fewer than the largest."""
    written = catalog.get(server.model, server.quantization)
    model = fleet.models.get(server.model)
    if "quantization" not in server.fill or written is None:
        return
    known = {
        q: f for q in (model.files if model else ()) if (f := catalog.get(server.model, q)) is not None and f.parts
    }
    sizes = {q: f.file_bytes for q, f in known.items() if f.file_bytes > written.file_bytes}
    sizes[server.quantization] = written.file_bytes
    largest = max(sizes.values())
    for name in sorted(sizes, key=lambda q: (-sizes[q], q)):
        yield Option(cost=largest - sizes[name], changes={"quantization": name})


def fineness(sharers: int) -> int:
    """Number of steps that a training context is divided into: fewer the more servers are weighed together."""
    return max(STEPS_MIN, STEPS // sharers)


def contexts(fleet: FleetConfig, catalog: Catalog, server: ServerConfig, sharers: int) -> Iterator[Option]:
    """From the training context down to the written one, a slot. Cost: tokens fewer than the longest, all slots."""
    model = catalog.get(server.model, server.quantization)
    if "context" not in server.fill or model is None:
        return
    slots = server.slots if server.slots is not None else AUTO_SLOTS
    longest = model.architecture.n_ctx_train
    least = min(_least(fleet, server, slots), longest)
    step = max(STEP, -(-longest // fineness(sharers) // 256) * 256)
    sizes = {least, longest, *range(-(-least // step) * step, longest, step)}
    for size in sorted(sizes, reverse=True):
        yield Option(cost=(longest - size) * slots, changes={"n_ctx_per_slot": size, "n_ctx": None})


def _least(fleet: FleetConfig, server: ServerConfig, slots: int) -> int:
    """The least acceptable tokens per slot: as written, or what the server's roles need, or one step."""
    needs = (fleet.routing.n_ctx_min.get(role, 0) for role in server.roles)
    written = server.n_ctx_per_slot or (server.n_ctx or 0) // max(1, slots)
    return max(written, *needs, 0) or STEP


def _devices(fleet: FleetConfig, server: ServerConfig) -> tuple[str, ...]:
    return tuple(d for d in server.devices if d in fleet.hardware.gpus)


Step = Callable[[FleetConfig, Catalog, ServerConfig, int], Iterator[Option]]
"""Fleet, catalogue, server, and the number of servers chosen for together."""
IN_ORDER: tuple[Step, ...] = (layers, experts, quantizations, contexts)
"""The steps: an earlier one outweighs all later ones."""
IN_RAM: frozenset[Step] = frozenset({quantizations, contexts})
"""Steps whose better options take more RAM."""
