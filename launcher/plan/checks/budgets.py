"""Does it fit: devices against budgets, totals against what documents state. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding, Fix, Severity
from launcher.ir.plan import DeviceMemory, DevicePlan, ServerPlan
from launcher.ir.settings import RAM
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.checks.remedies import remedies
from launcher.plan.devices import growth_on, worst
from launcher.sizes import MIB, gib

STATED_TOLERANCE = 0.01
CONTEXTS_SHARE = 0.05
"""Of a card: contexts of processes that take no more are not worth a line."""


def breakdown(name: str, memory: DeviceMemory) -> str:
    """`frontdoor needs 21.9 GiB: 17.3 GiB model, 3.0 GiB context, …`."""
    parts = (
        ("model", memory.model_bytes),
        ("context", memory.kv_bytes + memory.recurrent_bytes),
        ("compute", memory.compute_bytes + memory.output_bytes),
        ("draft", memory.draft_bytes),
        ("projector", memory.projector_bytes),
        ("process", memory.overhead_bytes),
        ("at full load", memory.peak_bytes - memory.committed_bytes),
    )
    return f"{name} needs {gib(memory.resident_peak_bytes)}: " + ", ".join(f"{gib(b)} {w}" for w, b in parts if b)


def biggest(planning: Planning, device: str) -> tuple[tuple[ServerPlan, DeviceMemory], ...]:
    """Servers by what they take on `device`, largest first."""
    devices = {device, *(planning.fleet.hardware.pooled if device == RAM else ())}
    users = [(s, m) for s in planning.running for m in s.memory if m.device in devices]
    return tuple(sorted(users, key=lambda pair: (-pair[1].resident_peak_bytes, pair[0].name)))


def check_budgets(planning: Planning) -> Iterator[Finding]:
    """`plan/ram-over-budget`, `plan/vram-over-budget`: the HOT set, or the worst set, exceeds a budget."""
    for device in planning.devices:
        if max(device.planned_bytes, device.peak_bytes) <= device.budget_bytes:
            continue
        over_at_start = device.planned_bytes > device.budget_bytes
        need = device.planned_bytes if over_at_start else device.peak_bytes
        what = "is planned after start" if over_at_start else "is needed when all that the tiers allow is up and full"
        ram = device.kind == "ram"
        users = biggest(planning, device.name)
        yield finding(
            "error",
            "plan/ram-over-budget" if ram else "plan/vram-over-budget",
            "hardware.ram_bytes" if ram else f"hardware.gpus.{device.name}.vram_bytes",
            f"{device.name} has a budget of {gib(device.budget_bytes)} but {gib(need)} {what}",
            notes=tuple(breakdown(s.name, m) for s, m in users[:1]),
            fixes=remedies(planning, device.name, max(need, device.peak_bytes) - device.budget_bytes),
        )


def check_nodes(planning: Planning) -> Iterator[Finding]:
    """`plan/node-over-budget`: bound memory exceeds a node, more is locked than it has, preferred memory spills."""
    nodes = planning.devices[0].nodes
    for node in nodes:
        users = [s for s in planning.running if s.config.numa and node.id in s.config.numa.nodes]
        bound = [s for s in users if s.config.numa and s.config.numa.policy == "bind"]
        preferred = [s for s in users if s.config.numa and s.config.numa.policy == "preferred"]
        there = [s for s in (*bound, *preferred) if s.initial]
        wanted = sum(_ram(s) // len(s.config.numa.nodes) for s in there if s.config.numa)
        if max(node.planned_bytes, node.peak_bytes) > node.capacity_bytes and bound:
            severity: Severity = "error"
            at_start = node.planned_bytes > node.capacity_bytes
            size = node.planned_bytes if at_start else node.peak_bytes
            what = "is planned there" if at_start else "is needed there when all that the tiers allow is up and full"
            message = f"node {node.id} has {gib(node.capacity_bytes)} but {gib(size)} {what}"
        elif node.locked_bytes > node.capacity_bytes:
            severity = "warning"
            message = (
                f"{gib(node.locked_bytes)} is to be locked on node {node.id}, which has {gib(node.capacity_bytes)}: "
                "the rest is locked on other nodes, far from who reads it"
            )
        elif preferred and wanted > node.capacity_bytes:
            severity = "note"
            message = (
                f"{gib(wanted)} prefers node {node.id}, which has {gib(node.capacity_bytes)}: the rest spills over"
            )
        else:
            continue
        names = ", ".join(s.name for s in (*bound, *preferred))
        yield finding(severity, "plan/node-over-budget", "hardware.cpu.nodes", message, notes=(f"there: {names}",))


def _ram(server: ServerPlan) -> int:
    """ServerPlan RAM of a server."""
    memory = server.takes(RAM)
    return memory.planned_bytes if memory else 0


def check_vram_target(planning: Planning) -> Iterator[Finding]:
    """`plan/vram-target`: a used card stays below its target share, always or while one that takes turns is up."""
    for device in planning.devices[1:]:
        gpu = planning.fleet.hardware.gpus[device.name]
        least = gpu.vram_bytes * gpu.target_min
        of_turns = {} if device.peak_bytes < least else dict(_of_turns(planning, device))
        low = {name: size for name, size in of_turns.items() if size < least}
        if not device.peak_bytes or (device.peak_bytes >= least and not low):
            continue
        users = set(low) or {s.name for s in planning.running if s.takes(device.name)}
        tried = tuple(why for choice in planning.solved if choice.server in users for why in choice.beyond)
        used = ", ".join(f"{_share(size, device)} while {name} has its turn" for name, size in low.items())
        used = used or f"{_share(device.peak_bytes, device)} of {gib(gpu.vram_bytes)} is used at most"
        yield finding(
            "note",
            "plan/vram-target",
            f"hardware.gpus.{device.name}.target_min",
            f"{device.name}: {used}, the target is {gpu.target_min:.0%} to {gpu.target_max:.0%}: "
            + ("nothing better fits of what was left open" if tried else "a larger context or quantization fits"),
            notes=tried,
        )


def _of_turns(planning: Planning, device: DevicePlan) -> Iterator[tuple[str, int]]:
    """Members of exclusive groups, and what is used of `device` at most while each has its turn."""
    taken = {s.name: m.resident_peak_bytes for s in planning.running if (m := s.takes(device.name))}
    for server in planning.running:
        group = server.config.exclusive
        if group and taken.get(server.name):
            mates = (taken.get(s.name, 0) for s in planning.running if s.config.exclusive == group)
            yield server.name, device.peak_bytes - max(mates) + taken[server.name]


def check_contexts(planning: Planning) -> Iterator[Finding]:
    """`plan/gpu-context`: what processes hold of a card before they load anything is much, and nobody measured it."""
    for device in planning.devices[1:]:
        gpu = planning.fleet.hardware.gpus[device.name]
        users = [s for s in planning.running if s.takes(device.name)]
        processes = worst(users, lambda _: 1)
        held = processes * gpu.context_bytes
        few = processes < 2 or held <= CONTEXTS_SHARE * gpu.vram_bytes
        if gpu.process_bytes is not None or few:
            continue
        yield finding(
            "note",
            "plan/gpu-context",
            f"hardware.gpus.{device.name}.process_bytes",
            f"{device.name}: {gib(held)} are counted for {processes} processes at once before they load anything, "
            f"{gib(gpu.context_bytes)} each, as people report of {gpu.backend}; not measured on this card",
            notes=("start one small server and read what nvidia-smi or rocm-smi says of its process",),
            fixes=(
                Fix(
                    override=f"hardware.gpus.{device.name}.process_bytes={gpu.context_bytes // MIB}MiB",
                    effect="states it, or the figure that you measured",
                ),
            ),
        )


def _share(size: int, device: DevicePlan) -> str:
    """`size` as a share of the device."""
    return f"{size / device.capacity_bytes:.0%}"


def check_prompt_caches(planning: Planning) -> Iterator[Finding]:
    """`plan/prompt-cache-over-budget`, `plan/prompt-cache-unlimited`: caches that grow until memory is full."""
    device = planning.devices[0]
    growth = growth_on(RAM, planning.servers)
    if device.peak_bytes <= device.budget_bytes < device.peak_bytes + growth:
        growing = [s for s in planning.running if (m := s.takes(RAM)) and m.growth_bytes]
        room = max(0, device.budget_bytes - device.peak_bytes)
        each = room // max(1, len(growing)) // 1024**2
        yield finding(
            "warning",
            "plan/prompt-cache-over-budget",
            "hardware.ram_bytes",
            f"prompt caches may grow to {gib(growth)}, but the worst set leaves {gib(room)} of RAM",
            fixes=tuple(set_field(s, "cache_ram_mib", each) for s in growing),
        )
    for server in planning.running:
        if server.config.cache_ram_mib < 0 and not server.settings.embedding:
            yield finding(
                "warning",
                "plan/prompt-cache-unlimited",
                f"{server.key}.cache_ram_mib",
                "the prompt cache has no limit and is not counted: it grows until memory is full",
                fixes=(set_field(server, "cache_ram_mib", 8192),),
            )


def check_warm_pool(planning: Planning) -> Iterator[Finding]:
    """`plan/warm-pool-over-budget`: model files kept in RAM do not fit beside the worst set."""
    orchestration = planning.fleet.orchestration
    pool = orchestration.warm_pool.ram_bytes if orchestration and orchestration.warm_pool else 0
    device = planning.devices[0]
    if device.peak_bytes <= device.budget_bytes < device.peak_bytes + pool:
        yield finding(
            "warning",
            "plan/warm-pool-over-budget",
            "orchestration.warm_pool.ram_bytes",
            f"the warm pool keeps {gib(pool)} of files in RAM, the worst set leaves "
            f"{gib(device.budget_bytes - device.peak_bytes)}",
        )


def check_stated(planning: Planning) -> Iterator[Finding]:
    """`plan/total-mismatch`, `plan/kv-reserve`: totals that documents state differ from those computed."""
    stated = planning.fleet.stated
    if stated is None:
        return
    source = f" ({stated.source})" if stated.source else ""
    hot, kv = planning.totals.hot_ram_bytes, planning.totals.kv_bytes
    if stated.hot_ram_bytes is not None and abs(hot - stated.hot_ram_bytes) > STATED_TOLERANCE * stated.hot_ram_bytes:
        yield finding(
            "note",
            "plan/total-mismatch",
            "stated.hot_ram_bytes",
            f"{gib(stated.hot_ram_bytes)} of HOT RAM is stated{source}, {gib(hot)} is planned",
        )
    if stated.kv_reserve_bytes is not None and not 0.5 <= kv / max(1, stated.kv_reserve_bytes) <= 1:
        yield finding(
            "note",
            "plan/kv-reserve",
            "stated.kv_reserve_bytes",
            f"{gib(stated.kv_reserve_bytes)} is reserved for KV{source}, the configured contexts need {gib(kv)}",
        )
