"""`launch plan` for people: servers, memory as bars, findings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from launcher.base.addresses import socket_path
from launcher.cli.findings import counted, show_findings, summary
from launcher.cli.terminal import Terminal
from launcher.compiler import Compilation
from launcher.ir.measured import ServerSpeed
from launcher.ir.plan import DevicePlan, FleetPlan, ResidentSet, ServerPlan, ServicePlan, Solved
from launcher.ir.proof import Proof, ServerProof
from launcher.plan.proof import is_mismatch
from launcher.sizes import GIB, MIB, gib

SHOWN = 3
"""Names that are shown of the models whose files are not here."""


def show_plan(
    terminal: Terminal,
    compiled: Compilation,
    *,
    verbose: bool = False,
    proof: Proof | None = None,
    speeds: tuple[ServerSpeed, ...] = (),
) -> None:
    """Show the whole plan, and its proof if there is one. `verbose` adds each server's command line."""
    plan = compiled.plan
    terminal.line(f"{terminal.style(plan.deployment, 'bold')}  {plan.config.profile.description}".rstrip())
    terminal.line()
    _servers(terminal, plan)
    _services(terminal, plan)
    _upstreams(terminal, plan)
    terminal.line()
    for device in plan.devices:
        _device(terminal, device, plan)
    _speeds(terminal, speeds)
    _solved(terminal, plan)
    _residency(terminal, plan)
    terminal.line()
    terminal.line(_sums(plan))
    absent = _absent(plan)
    if absent:
        terminal.line(absent)
    if verbose:
        for name, command in compiled.commands.items():
            terminal.line()
            terminal.line(terminal.style(name, "bold"))
            terminal.line(f"  {shlex.join(command.argv)}")
    if proof is not None:
        terminal.line()
        show_proof(terminal, proof)
    terminal.line()
    show_findings(terminal, compiled.findings)
    terminal.line(summary(compiled.findings))


def _sums(plan: FleetPlan) -> str:
    totals, hardware = plan.totals, plan.config.hardware
    machines = [hardware.machine(name) for name in hardware.hosts] or [hardware]
    cores = sum(machine.cpu.physical_cores for machine in machines)
    counts = f"{counted(len(plan.servers), 'server')}, {counted(len(plan.services), 'service')}"
    if plan.config.upstreams:
        counts += f", {counted(len(plan.config.upstreams), 'upstream')}"
    parts = [
        f"{counts}; HOT {gib(totals.hot_ram_bytes)} of RAM",
        f"K/V {gib(totals.kv_bytes)}",
        f"{totals.threads} threads on {cores} cores",
    ]
    if totals.warm_ram_bytes:
        parts.insert(1, f"WARM {gib(totals.warm_ram_bytes)}")
    growth = sum(memory.growth_bytes for server in plan.servers for memory in server.memory)
    if growth:
        parts.append(f"prompt caches may grow by {gib(growth)} more")
    return ", ".join(parts)


def _absent(plan: FleetPlan) -> str:
    """A sentence on the models that are sized as declared, because their files are not here; "" if there are none."""
    names = list(dict.fromkeys(s.entry for s in plan.servers if s.model.source == "declared"))
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    files = "file is" if len(names) == 1 else "files are"
    return f"{len(names)} model {files} not here, sized as declared: {', '.join(names[:SHOWN])}{rest}"


def _size(size_bytes: int) -> str:
    """Short size for a column: `17.3G`, `412M`, `-`."""
    if size_bytes == 0:
        return "-"
    return f"{size_bytes / GIB:.1f}G" if size_bytes >= GIB else f"{size_bytes / MIB:.0f}M"


def _servers(terminal: Terminal, plan: FleetPlan) -> None:
    header = (
        *("SERVER", "PORT", "TIER", "MODEL", "DEVICE", "SLOTS", "CTX/SLOT"),
        *("MODEL", "K/V", "COMPUTE", "OTHER", "TOTAL"),
    )
    rows = []
    for server in plan.servers:
        name, slots = (server.name, _port(server), server.tier, server.entry), str(server.settings.slots)
        for index, memory in enumerate(server.memory):
            total = memory.committed_bytes + memory.file_bytes
            known = (memory.model_bytes, memory.kv_bytes, memory.compute_bytes)
            cells = (
                *(name if index == 0 else ("", "", "", "")),
                memory.device,
                *((slots, _context(server)) if index == 0 else ("", "")),
                *map(_size, (*known, max(0, total - sum(known)), total)),
            )
            rows.append(cells)
    terminal.table(header, rows, right={1, *range(5, 12)})


def _context(server: ServerPlan) -> str:
    """Tokens per slot; if all slots share one context, the total: `1024 for 4`."""
    settings = server.settings
    shared = settings.kv_unified and settings.slots > 1
    return f"{settings.n_ctx} for {settings.slots}" if shared else str(settings.n_ctx_per_slot)


def _port(process: ServerPlan | ServicePlan) -> str:
    """`8080`, or the path of a unix socket; with several hosts after the host's name: `beta:8080`."""
    where = socket_path(process.config.host) or str(process.port)
    return f"{process.on}:{where}" if process.on else where


def _services(terminal: Terminal, plan: FleetPlan) -> None:
    if not plan.services:
        return
    terminal.line()
    rows = [
        (s.name, _port(s), _size(s.config.ram_bytes), s.config.model or s.config.description) for s in plan.services
    ]
    terminal.table(("SERVICE", "PORT", "RAM", "WHAT"), rows, right={1, 2})


def _upstreams(terminal: Terminal, plan: FleetPlan) -> None:
    """Show a row per server that others run, with what it takes of this machine; nothing if there is none."""
    if not plan.config.upstreams:
        return
    terminal.line()
    rows = []
    for name, upstream in plan.config.upstreams.items():
        taken = {"RAM": upstream.ram_bytes, **upstream.vram_bytes}
        here = ", ".join(f"{_size(size)} {device}" for device, size in taken.items() if size)
        models = ", ".join((*upstream.models, *upstream.aliases))
        rows.append((name, upstream.url, str(upstream.slots), here or "-", models))
    terminal.table(("UPSTREAM", "URL", "SLOTS", "HERE", "MODELS"), rows, right={2})


def _device(terminal: Terminal, device: DevicePlan, plan: FleetPlan) -> None:
    """Show a device's memory as a bar: planned of budget, with the peak; then one per NUMA node."""
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


def show_proof(terminal: Terminal, proof: Proof) -> None:
    """Show the table of a proof, and how it was made."""
    header = ("PROOF", "DEVICE", "COMPONENT", "PREDICTED", "PROVEN", "OVER", "")
    rows = [row for server in proof.servers for row in _proof_rows(server)]
    terminal.table(header, rows, right={3, 4, 5})
    terminal.line()
    features = ", ".join(proof.features) or "no extra instructions"
    terminal.line(f"MiB, by {proof.binary} ({proof.version.removeprefix('version: ')})")
    terminal.line(f"both columns are for this machine's CPU ({features}); compute is never under, the rest is exact")
    stood = sorted({device for server in proof.servers for device in server.stand_ins})
    if stood:
        terminal.line(f"not on this machine, an RPC server stood in: {', '.join(stood)}")


def _proof_rows(server: ServerProof) -> Iterator[tuple[str, ...]]:
    if server.failure is not None:
        yield (server.name, "", "not proven", "", "", "", "see findings")
        return
    for at, d in enumerate(server.differences):
        over = f"{(d.predicted_bytes - d.proven_bytes) / d.proven_bytes:+.1%}" if d.proven_bytes else "-"
        sizes = (f"{d.predicted_bytes / MIB:.2f}", f"{d.proven_bytes / MIB:.2f}")
        differs = "DIFFERS" if is_mismatch(d) else ""
        yield ("" if at else server.name, d.device, d.component, *sizes, over, differs)


def _solved(terminal: Terminal, plan: FleetPlan) -> None:
    """Show what was chosen if servers leave something open, and what the next better values would need."""
    if plan.solved:
        terminal.line()
        terminal.table(("CHOSEN", "", "NOTHING BETTER FITS"), [_solved_row(choice) for choice in plan.solved])


def _solved_row(choice: Solved) -> tuple[str, str, str]:
    values = ", ".join(f"{field}={_value(value)}" for field, value in choice.chosen.items())
    if not choice.fits:
        return choice.server, values, "not even this: it is the least that will do"
    more = () if choice.complete else ("there may be better: too many combinations for so many devices",)
    return choice.server, values, "; ".join((*choice.beyond, *more)) or "all is at its best"


def _value(value: object) -> str:
    return f"[{','.join(f'{v:g}' for v in value)}]" if isinstance(value, list) else str(value)


def _speeds(terminal: Terminal, speeds: tuple[ServerSpeed, ...]) -> None:
    """Show a row per server: tokens per second with one request at a time, and the source of the figure."""
    if not speeds:
        return
    terminal.line()
    header = ("SPEED", "TOKENS/S", "ALL AT ONCE", "PROMPT/S", "LOADS IN", "A TOKEN READS", "SOURCE")
    rows = []
    for s in speeds:
        load = "" if s.load_s is None else f"{s.load_s:.1f} s"
        read = ", ".join(f"{size / 1e9:.2f} GB of {device}" for device, size in s.touched_bytes.items())
        speed = (_range(s.decode), _range(s.together), _range(s.prompt))
        rows.append((s.server, *speed, load, read, f"{s.source}: {s.basis}"))
    terminal.table(header, rows, right=range(1, 5))


def _range(ends: tuple[float, float] | None) -> str:
    """`12-20`; one number if both ends are the same."""
    if ends is None:
        return ""
    low, high = (f"{end:.1f}" if end < 10 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low}-{high}"


def _residency(terminal: Terminal, plan: FleetPlan) -> None:
    """Show which servers may be up at once, a row per set; nothing if all fit together and may be."""
    for table in plan.residency:
        if len(table.sets) == 1 and table.sets[0].allowed and not table.never and table.complete:
            continue
        budgets = {d.name: d.budget_bytes for d in plan.devices if d.host == table.host}
        terminal.line()
        rows = [_resident_row(found, budgets) for found in table.sets]
        rows += [(name, *("" for _ in budgets), "fits beside none") for name in table.never]
        where = f" on {table.host}" if table.host else ""
        header = (f"UP TOGETHER{where}", *(name.upper() for name in budgets), "")
        terminal.table(header, rows, right=range(1, len(budgets) + 1))
        beside = f"beside {', '.join(table.always)}" if table.always else "nothing else is up"
        whole = "" if table.complete else "; there are more sets than these"
        terminal.line(f"{beside}{whole}; sizes are peaks, of the budget")


def _resident_row(found: ResidentSet, budgets: dict[str, int]) -> tuple[str, ...]:
    cells = (
        f"{_size(size)} {size / budget:>4.0%}" if (size := found.bytes.get(name, 0)) and budget else "-"
        for name, budget in budgets.items()
    )
    return " + ".join(found.servers), *cells, "" if found.allowed else "would fit, but they take turns (exclusive)"
