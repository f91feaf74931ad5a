"""The fleet that is simulated: models of six shapes on hosts with one card each, planned by the planner. Pure."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from launcher.ir.catalog import ModelFile
from launcher.ir.config import GpuConfig, HostConfig
from launcher.ir.fleet import DeviceNeed, ServerUnit
from launcher.ir.plan import FleetPlan
from launcher.plan import plan_fleet
from launcher.sizes import GIB
from tests.plan.fleets import LLAMA_8B, QWEN3_30B, catalog, fleet, hardware, model_file, server, with_fields
from tests.supervise.conftest import unit

DISK_BYTES_S, RAM_BYTES_S = 2 * 10**9, 12 * 10**9
"""How fast a file is read from an NVMe, and from the page cache onto a card (PCIe 4.0 with 16 lanes, as it is met)."""
BEGIN_S = 2.0
"""What a start takes beside reading: the process, the card's context, the proof that it answers."""
END_S = 0.5
"""From SIGTERM to the end of a process."""
CARD_BYTES = 80 * GIB
CACHE_BYTES = 96 * GIB
"""Of a host's RAM: pages of model files."""
SLOTS = 8
SHAPES: tuple[tuple[int, Any, str], ...] = (
    (25, with_fields(LLAMA_8B, n_layer=28, n_embd=3072, n_head=24, n_ff=8192), "q4_k"),
    (25, LLAMA_8B, "q4_k"),
    (10, LLAMA_8B, "q8_0"),
    (20, with_fields(LLAMA_8B, n_layer=40, n_embd=5120, n_head=40), "q4_k"),
    (10, QWEN3_30B, "q4_k"),
    (7, with_fields(LLAMA_8B, n_layer=64, n_embd=5120, n_head=40, n_ff=27648, n_vocab=152064), "q4_k"),
    (3, with_fields(LLAMA_8B, n_layer=80, n_embd=8192, n_head=64, n_ff=28672), "q4_k"),
)
"""Of a hundred models, how many are 3B, 8B (twice), 14B, 30B of experts, 32B and 70B."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server of the plan. `model` is what clients ask for; it may have servers on several hosts."""

    model: str
    host: str
    file_bytes: int
    disk_s: float
    """As the plan says that reading its file takes."""
    unit: ServerUnit

    @property
    def name(self) -> str:
        """The unit's."""
        return self.unit.name

    @property
    def ram_s(self) -> float:
        """What reading takes from RAM."""
        return self.file_bytes / RAM_BYTES_S


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts, and the servers that are planned on each. `budgets`: bytes by device, every host's."""

    hosts: tuple[str, ...]
    servers: tuple[Server, ...]
    budgets: dict[str, int]

    def of_host(self, host: str) -> tuple[Server, ...]:
        """Who is planned there."""
        return tuple(s for s in self.servers if s.host == host)


def made(hosts: int, models: int, homes: int, seed: int) -> Site:
    """`models` models, each with a server on `homes` hosts; where, and of which shape, is drawn by `seed`.

    Whoever writes such a plan does not know which model will be asked for most: places are drawn, as many a host.
    """
    draw = random.Random(seed)
    names = [f"m{i:04}" for i in range(models)]
    files = {name: _file(name, draw) for name in names}
    machines = [f"h{i:03}" for i in range(hosts)]
    shuffled = draw.sample(names, models)
    where = {
        f"{name}-{home}": (name, machines[(place + home * (hosts // 2 + 1)) % hosts])
        for place, name in enumerate(shuffled)
        for home in range(homes)
    }
    plan = _planned({n: where[n] for n in sorted(where)}, files, machines)
    budgets = {f"{d.host}/{d.name}": d.budget_bytes for d in plan.devices}
    servers = tuple(_server(planned, files[planned.config.model], where[planned.name]) for planned in plan.servers)
    return Site(hosts=tuple(machines), servers=servers, budgets=budgets)


def _file(name: str, draw: random.Random) -> ModelFile:
    """A model of its own, of one of the shapes."""
    _, architecture, kind = draw.choices(SHAPES, [share for share, _, _ in SHAPES])[0]
    return model_file(architecture, name=name, kind=kind, embedding="q6_k")


def _planned(where: dict[str, tuple[str, str]], files: dict[str, ModelFile], machines: list[str]) -> FleetPlan:
    """All servers on demand, whole on their host's card."""
    hosts = {
        name: HostConfig(address=f"10.0.{i // 250}.{i % 250 + 1}", api_key_file="/etc/launch/key")
        for i, name in enumerate(machines)
    }
    servers = {
        name: server(
            model=model, host=host, tier="warm", devices=("cuda0",), n_gpu_layers="all", slots=SLOTS, n_ctx=16384
        )
        for name, (model, host) in where.items()
    }
    card = GpuConfig(backend="cuda", vram_bytes=CARD_BYTES, process_bytes=GIB // 2)
    machine = msgspec.structs.replace(
        hardware(ram_bytes=256 * GIB, read_speed_bytes=DISK_BYTES_S), gpus={"cuda0": card}, hosts=hosts
    )
    return plan_fleet(
        fleet(servers, hardware=machine), catalog(*files.values()), deployment="simulated", input_digest=""
    )


def _server(planned: Any, file: ModelFile, where: tuple[str, str]) -> Server:
    """A server of the plan as a runtime has it; devices are called after their host, as for a cluster."""
    model, host = where
    needs = tuple(
        DeviceNeed(
            device=f"{host}/{m.device}",
            committed_bytes=m.committed_bytes,
            peak_bytes=m.peak_bytes,
            file_bytes=0,  # pages of a file that is read onto a card give way
        )
        for m in planned.memory
    )
    path = file.parts[0].path
    changes: dict[str, Any] = {"start": "demand", "slots": SLOTS, "memory": needs, "load_s": planned.load_s}
    made_unit = unit(planned.name, (), planned.port, path, files=(path,), fatal=False, stall_timeout_s=0, **changes)
    made_unit = msgspec.structs.replace(made_unit, start_timeout_s=1e6)
    return Server(model=model, host=host, file_bytes=file.file_bytes, disk_s=planned.load_s or 0.0, unit=made_unit)
