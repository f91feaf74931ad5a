"""Checks of memory: devices against budgets, files against the disk, ladder rungs, totals stated in documents. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.config import GpuConfig, ServerConfig
from launcher.ir.plan import RAM, DeviceMemory, DevicePlan, ServerPlan
from launcher.plan.checks.planning import Planning, set_fields
from launcher.plan.devices import totals, worst
from launcher.plan.server import peaks, rung_config
from launcher.sizes import MIB, gib

STATED_TOLERANCE = 0.01
SHOWN = 3
IDLE_BYTES = 8 * 1024**3
"""RAM above which a server that leaves a card unused is reported; a small model may well be meant for the CPU."""
CONTEXTS_SHARE = 0.05
"""Share of a card below which the contexts of processes are not reported."""


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


def check_budgets(planning: Planning) -> Iterator[Finding]:
    """`plan/ram-over-budget`, `plan/vram-over-budget`: the HOT set, or the worst set, exceeds a budget."""
    for device in planning.devices:
        if max(device.planned_bytes, device.peak_bytes) <= device.budget_bytes:
            continue
        over_at_start = device.planned_bytes > device.budget_bytes
        need = device.planned_bytes if over_at_start else device.peak_bytes
        what = "is planned after start" if over_at_start else "is needed when all that the tiers allow is up and full"
        ram = device.kind == "ram"
        from launcher.plan.checks.remedies import remedies  # noqa: PLC0415 - only a fleet that does not fit needs it

        also = planning.fleet.hardware.pooled if ram else ()
        users = [(s, m) for s in planning.running for m in s.memory if m.device in (device.name, *also)]
        users.sort(key=lambda user: (-user[1].resident_peak_bytes, user[0].name))
        yield fault(
            "plan/ram-over-budget" if ram else "plan/vram-over-budget",
            "hardware.ram_bytes" if ram else f"hardware.gpus.{device.name}.vram_bytes",
            f"{device.name} has a budget of {gib(device.budget_bytes)} but {gib(need)} {what}",
            *(tuple(breakdown(s.name, m) for s, m in users[:1])),
            fixes=remedies(planning, device.name, max(need, device.peak_bytes) - device.budget_bytes),
        )


def check_nodes(planning: Planning) -> Iterator[Finding]:
    """`plan/node-over-budget`: bound memory exceeds a node, more is locked than it has, or preferred memory spills."""
    nodes = planning.devices[0].nodes
    for node in nodes:
        users = [s for s in planning.running if s.config.numa and node.id in s.config.numa.nodes]
        bound = [s for s in users if s.config.numa and s.config.numa.policy == "bind"]
        preferred = [s for s in users if s.config.numa and s.config.numa.policy == "preferred"]
        there = [s for s in (*bound, *preferred) if s.initial]
        wanted = sum(s.takes(RAM).planned_bytes // len(s.config.numa.nodes) for s in there if s.config.numa)
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
        yield fault("plan/node-over-budget", "hardware.cpu.nodes", message, f"there: {names}", severity=severity)


def check_cards(planning: Planning) -> Iterator[Finding]:
    """`plan/vram-target`, `plan/gpu-context`: cards that are hardly used, or whose drivers may take more.

    `plan/card-idle`: no server uses any card, and a large one names no devices: it fills RAM instead.
    """
    cards = planning.devices[1:]
    for device in cards:
        gpu = planning.fleet.hardware.gpus[device.name]
        users = [s for s in planning.running if any(m.device == device.name for m in s.memory)]
        yield from _target(planning, device, gpu, users)
        yield from _contexts(device, gpu, users)
    plain = [
        (size, s)
        for s in planning.running
        if not s.config.devices and (size := s.takes(RAM).resident_peak_bytes) >= IDLE_BYTES
    ]
    if cards and plain and not any(d.peak_bytes for d in cards):
        size, largest = max(plain, key=lambda pair: pair[0])
        names, taken = ", ".join(d.name for d in cards), gib(size)
        message = f"{names} idle{'s' if len(cards) == 1 else ''} while {largest.name} takes {taken} of RAM"
        fixes = (set_fields(largest, "as many layers on the card as fit", devices="auto"),)
        yield fault("plan/card-idle", f"{largest.key}.devices", message, fixes=fixes, severity="note")


def _target(planning: Planning, device: DevicePlan, gpu: GpuConfig, users: list[ServerPlan]) -> Iterator[Finding]:
    """`plan/vram-target`: a used card stays below its target share, always or during a group member's turn."""
    least = gpu.vram_bytes * gpu.target_min
    of_turns = {} if device.peak_bytes < least else dict(_of_turns(device, users))
    low = {name: size for name, size in of_turns.items() if size < least}
    if not device.peak_bytes or (device.peak_bytes >= least and not low):
        return
    about = set(low) or {s.name for s in users}
    tried = tuple(why for choice in planning.solved if choice.server in about for why in choice.beyond)
    used = ", ".join(f"{size / device.capacity_bytes:.0%} while {name} has its turn" for name, size in low.items())
    used = used or f"{device.peak_bytes / device.capacity_bytes:.0%} of {gib(gpu.vram_bytes)} is used at most"
    message = f"{device.name}: {used}, the target is {gpu.target_min:.0%} to {gpu.target_max:.0%}: " + (
        "nothing better fits of what was left open" if tried else "a larger context or quantization fits"
    )
    yield fault("plan/vram-target", f"hardware.gpus.{device.name}.target_min", message, *tried, severity="note")


def _of_turns(device: DevicePlan, users: list[ServerPlan]) -> Iterator[tuple[str, int]]:
    """Members of exclusive groups, and the highest use of `device` during each one's turn."""
    taken = {s.name: s.takes(device.name).resident_peak_bytes for s in users}
    for server in users:
        group = server.config.exclusive
        if group and taken[server.name]:
            most = max(taken[s.name] for s in users if s.config.exclusive == group)
            yield server.name, device.peak_bytes - most + taken[server.name]


def _contexts(device: DevicePlan, gpu: GpuConfig, users: list[ServerPlan]) -> Iterator[Finding]:
    """`plan/gpu-context`: what processes take of a card before loading anything is much, and was not measured."""
    processes = worst(users, lambda _: 1)
    held = processes * gpu.context_bytes
    if gpu.process_bytes is not None or processes < 2 or held <= CONTEXTS_SHARE * gpu.vram_bytes:
        return
    key = f"hardware.gpus.{device.name}.process_bytes"
    override = f"{key}={gpu.context_bytes // MIB}MiB"
    message = (
        f"{device.name}: {gib(held)} are counted for {processes} processes at once before they load anything, "
        f"{gib(gpu.context_bytes)} each, as people report of {gpu.backend}; not measured on this card"
    )
    notes = ("start one small server and read what nvidia-smi or rocm-smi says of its process",)
    fixes = (Fix(override=override, effect="states it, or the figure that you measured"),)
    yield fault("plan/gpu-context", key, message, *notes, fixes=fixes, severity="note")


def check_growth(planning: Planning) -> Iterator[Finding]:
    """`plan/prompt-cache-over-budget`, `plan/prompt-cache-unlimited`: caches that grow until memory is full.

    `plan/warm-pool-over-budget`: model files kept in RAM do not fit beside the worst set.
    """
    device = planning.devices[0]
    room = device.budget_bytes - device.peak_bytes
    growth = worst(planning.servers, lambda s: s.takes(RAM).growth_bytes)
    if 0 <= room < growth:
        growing = [s for s in planning.running if s.takes(RAM).growth_bytes]
        each = room // max(1, len(growing)) // MIB
        message = f"prompt caches may grow to {gib(growth)}, but the worst set leaves {gib(room)} of RAM"
        fixes = tuple(set_fields(s, cache_ram_mib=each) for s in growing)
        yield fault("plan/prompt-cache-over-budget", "hardware.ram_bytes", message, fixes=fixes, severity="warning")
    for server in planning.running:
        if server.config.cache_ram_mib < 0 and not server.settings.embedding:
            message = "the prompt cache has no limit and is not counted: it grows until memory is full"
            fixes = (set_fields(server, cache_ram_mib=8192),)
            yield fault(
                "plan/prompt-cache-unlimited", f"{server.key}.cache_ram_mib", message, fixes=fixes, severity="warning"
            )
    orchestration = planning.fleet.orchestration
    pool = orchestration.warm_pool.ram_bytes if orchestration and orchestration.warm_pool else 0
    if 0 <= room < pool:
        message = f"the warm pool keeps {gib(pool)} of files in RAM, the worst set leaves {gib(room)}"
        yield fault("plan/warm-pool-over-budget", "orchestration.warm_pool.ram_bytes", message, severity="warning")


def check_stated(planning: Planning) -> Iterator[Finding]:
    """`plan/total-mismatch`, `plan/kv-reserve`: totals that documents state differ from those computed."""
    stated = planning.fleet.stated
    if stated is None:
        return
    source = f" ({stated.source})" if stated.source else ""
    planned = totals(planning.servers, planning.services)
    hot, kv = planned.hot_ram_bytes, planned.kv_bytes
    if stated.hot_ram_bytes is not None and abs(hot - stated.hot_ram_bytes) > STATED_TOLERANCE * stated.hot_ram_bytes:
        message = f"{gib(stated.hot_ram_bytes)} of HOT RAM is stated{source}, {gib(hot)} is planned"
        yield fault("plan/total-mismatch", "stated.hot_ram_bytes", message, severity="note")
    if stated.kv_reserve_bytes is not None and not 0.5 <= kv / max(1, stated.kv_reserve_bytes) <= 1:
        message = f"{gib(stated.kv_reserve_bytes)} is reserved for KV{source}, the configured contexts need {gib(kv)}"
        yield fault("plan/kv-reserve", "stated.kv_reserve_bytes", message, severity="note")


def check_disk(planning: Planning) -> Iterator[Finding]:
    """`plan/disk-over-budget`: the models' files, all quantizations, are more than the disk where they lie."""
    disk, files = planning.fleet.hardware.model_disk_bytes, planning.catalog.vault
    need = sum(file.bytes for file in files)
    if disk is None or need <= disk:
        return
    largest = sorted(files, key=lambda file: (-file.bytes, file.key))
    over, dropped = need - disk, []
    for file in (f for f in largest if not f.used):
        if over > 0:
            dropped.append(file)
            over -= file.bytes
    override = " ".join(f"~{file.key}" for file in dropped)
    effect = f"without what no server uses: saves {gib(sum(file.bytes for file in dropped))}"
    message = f"the config names {len(files)} model files of {gib(need)} together; the disk has {gib(disk)}"
    notes = tuple(f"{f.key}: {gib(f.bytes)}{'' if f.used else ', used by no server'}" for f in largest[:SHOWN])
    fixes = (Fix(override=override, effect=effect),) if over <= 0 else ()
    yield fault("plan/disk-over-budget", "hardware.model_disk_bytes", message, *notes, fixes=fixes, severity="warning")


def check_ladder(planning: Planning) -> Iterator[Finding]:
    """`plan/ladder-order`: a rung that takes no less on any device than the one before."""
    orchestration = planning.fleet.orchestration
    if orchestration is None:
        return
    for worker in orchestration.workers:
        before = _peaks(planning, planning.fleet.servers.get(worker))
        for index, rung in enumerate(orchestration.oom_ladder):
            after = _peaks(planning, rung_config(planning.fleet, worker, rung))
            if not before or not after:
                continue
            if all(after.get(device, 0) >= size for device, size in before.items()):
                device = max(before, key=before.__getitem__)
                message = (
                    f"for {worker} this rung takes {gib(after.get(device, 0))} on {device}, "
                    f"not less than the {gib(before[device])} before it"
                )
                yield fault("plan/ladder-order", f"orchestration.oom_ladder.{index}", message, severity="warning")
            before = after


def _peaks(planning: Planning, config: ServerConfig | None) -> dict[str, int]:
    return peaks(planning.fleet, planning.catalog, config, planning.tables) if config else {}


CHECKS = (check_budgets, check_nodes, check_cards, check_growth, check_ladder)
WHOLE = (check_stated, check_disk)
