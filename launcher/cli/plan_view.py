"""`launch plan` for people: servers, memory as bars, findings."""

from __future__ import annotations

from launcher.base.addresses import socket_of
from launcher.cli.findings import show_findings, summary
from launcher.cli.terminal import Terminal
from launcher.compiler import Compilation
from launcher.ir.config import HardwareConfig
from launcher.ir.plan import DevicePlan, FleetPlan, ServerPlan, ServicePlan
from launcher.ir.proof import Proof
from launcher.ir.speed import ServerSpeed
from launcher.sizes import GIB, MIB, gib

SHOWN = 3
"""Of the models whose files are not here."""
_NUMBERS = frozenset({1, 5, 6, 7, 8, 9, 10, 11})


def show_plan(
    terminal: Terminal,
    compiled: Compilation,
    *,
    verbose: bool = False,
    proof: Proof | None = None,
    speeds: tuple[ServerSpeed, ...] = (),
) -> None:
    """The whole plan, with its proof where there is one. `verbose` adds each server's command line."""
    plan = compiled.plan
    terminal.line(f"{terminal.style(plan.deployment, 'bold')}  {plan.config.profile.description}".rstrip())
    terminal.line()
    _servers(terminal, plan)
    _services(terminal, plan)
    _upstreams(terminal, plan)
    terminal.line()
    for device in plan.devices:
        _device(terminal, device, plan)
    if speeds:
        from launcher.cli.speed_view import show_speeds

        show_speeds(terminal, speeds)
    if plan.solved:
        from launcher.cli.solved_view import show_solved

        show_solved(terminal, plan.solved)
    if plan.residency:
        from launcher.cli.together_view import show_residency

        show_residency(terminal, plan)
    terminal.line()
    terminal.line(_sums(plan))
    absent = _absent(plan)
    if absent:
        terminal.line(absent)
    if verbose:
        import shlex

        for name, command in compiled.commands.items():
            terminal.line()
            terminal.line(terminal.style(name, "bold"))
            terminal.line(f"  {shlex.join(command.argv)}")
    if proof is not None:
        from launcher.cli.prove_view import show_proof

        terminal.line()
        show_proof(terminal, proof)
    terminal.line()
    show_findings(terminal, compiled.findings)
    terminal.line(summary(compiled.findings))


def _sums(plan: FleetPlan) -> str:
    """The fleet in one line."""
    totals = plan.totals
    counts = f"{_count(len(plan.servers), 'server')}, {_count(len(plan.services), 'service')}"
    if plan.config.upstreams:
        counts += f", {_count(len(plan.config.upstreams), 'upstream')}"
    parts = [
        f"{counts}; HOT {gib(totals.hot_ram_bytes)} of RAM",
        f"K/V {gib(totals.kv_bytes)}",
        f"{totals.threads} threads on {_cores(plan.config.hardware)} cores",
    ]
    if totals.warm_ram_bytes:
        parts.insert(1, f"WARM {gib(totals.warm_ram_bytes)}")
    growth = sum(memory.growth_bytes for server in plan.servers for memory in server.memory)
    if growth:
        parts.append(f"prompt caches may grow by {gib(growth)} more")
    return ", ".join(parts)


def _absent(plan: FleetPlan) -> str:
    """Which models were sized as they are declared, as their files are not here."""
    names = list(dict.fromkeys(s.entry for s in plan.servers if s.model.source == "declared"))
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    files = "file is" if len(names) == 1 else "files are"
    return f"{len(names)} model {files} not here, sized as declared: {', '.join(names[:SHOWN])}{rest}"


def _cores(hardware: HardwareConfig) -> int:
    """Physical cores, of all hosts."""
    machines = [hardware.machine(name) for name in hardware.hosts] or [hardware]
    return sum(machine.cpu.physical_cores for machine in machines)


def _count(number: int, noun: str) -> str:
    """`1 server`, `2 servers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size_bytes: int) -> str:
    """Short size for a column: `17.3G`, `412M`, `-`."""
    if size_bytes == 0:
        return "-"
    return f"{size_bytes / GIB:.1f}G" if size_bytes >= GIB else f"{size_bytes / MIB:.0f}M"


def _servers(terminal: Terminal, plan: FleetPlan) -> None:
    """One row a server and device."""
    header = (
        "SERVER",
        "PORT",
        "TIER",
        "MODEL",
        "DEVICE",
        "SLOTS",
        "CTX/SLOT",
        "MODEL",
        "K/V",
        "COMPUTE",
        "OTHER",
        "TOTAL",
    )
    rows: list[tuple[str, ...]] = []
    for server in plan.servers:
        for index, memory in enumerate(server.memory):
            known = memory.model_bytes + memory.kv_bytes + memory.compute_bytes
            total = memory.committed_bytes + memory.file_bytes
            cells = (
                *(_identity(server) if index == 0 else ("", "", "", "")),
                memory.device,
                *((str(server.settings.slots), _context(server)) if index == 0 else ("", "")),
                _size(memory.model_bytes),
                _size(memory.kv_bytes),
                _size(memory.compute_bytes),
                _size(max(0, total - known)),
                _size(total),
            )
            rows.append(cells)
    terminal.table(header, rows, right=_NUMBERS)


def _context(server: ServerPlan) -> str:
    """Tokens of a slot; where all slots share one context, so many in all: `1024 for 4`."""
    settings = server.settings
    shared = settings.kv_unified and settings.slots > 1
    return f"{settings.n_ctx} for {settings.slots}" if shared else str(settings.n_ctx_per_slot)


def _identity(server: ServerPlan) -> tuple[str, str, str, str]:
    """Name, port, tier, model of a server's first row."""
    return server.name, _port(server), server.tier, server.entry


def _port(process: ServerPlan | ServicePlan) -> str:
    """`8080`, or the path of a unix socket; of several hosts with whose it is: `beta:8080`."""
    where = socket_of(process.config.host) or str(process.port)
    return f"{process.on}:{where}" if process.on else where


def _services(terminal: Terminal, plan: FleetPlan) -> None:
    """One row a service; nothing where there is none."""
    if not plan.services:
        return
    terminal.line()
    rows: list[tuple[str, ...]] = [
        (s.name, _port(s), _size(s.config.ram_bytes), s.config.model or s.config.description) for s in plan.services
    ]
    terminal.table(("SERVICE", "PORT", "RAM", "WHAT"), rows, right=frozenset({1, 2}))


def _upstreams(terminal: Terminal, plan: FleetPlan) -> None:
    """One row a server that somebody else runs, with what it takes of this machine; nothing where there is none."""
    if not plan.config.upstreams:
        return
    terminal.line()
    rows: list[tuple[str, ...]] = []
    for name, upstream in plan.config.upstreams.items():
        taken = {"RAM": upstream.ram_bytes, **upstream.vram_bytes}
        here = ", ".join(f"{_size(size)} {device}" for device, size in taken.items() if size)
        models = ", ".join((*upstream.models, *upstream.aliases))
        rows.append((name, upstream.url, str(upstream.slots), here or "-", models))
    terminal.table(("UPSTREAM", "URL", "SLOTS", "HERE", "MODELS"), rows, right=frozenset({2}))


def _device(terminal: Terminal, device: DevicePlan, plan: FleetPlan) -> None:
    """A bar a memory: planned of budget, the peak beside it; of several hosts, with its host."""
    hosts = plan.config.hardware.hosts
    name = f"{device.host:<{max(map(len, hosts))}} {device.name:<6}" if device.host else f"{device.name:<8}"
    share = device.planned_bytes / device.budget_bytes if device.budget_bytes else 1.0
    colour = "red" if max(device.planned_bytes, device.peak_bytes) > device.budget_bytes else "green"
    terminal.line(
        f"{name} {terminal.style(terminal.bar(share), colour)} {share:>6.1%}  "
        f"{gib(device.planned_bytes)} planned, {gib(device.peak_bytes)} peak, {gib(device.budget_bytes)} budget "
        f"of {gib(device.capacity_bytes)}"
    )
    for node in device.nodes:
        share = node.planned_bytes / node.capacity_bytes if node.capacity_bytes else 1.0
        terminal.line(
            f"  node{node.id:<2} {terminal.bar(share)} {share:>6.1%}  "
            f"{gib(node.planned_bytes)} planned, {gib(node.peak_bytes)} peak"
            f"{f', {gib(node.locked_bytes)} locked' if node.locked_bytes else ''} of {gib(node.capacity_bytes)}"
        )
