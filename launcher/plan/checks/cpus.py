"""Threads, cpusets and memory policies. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.cpulist import format_cpulist, parse_cpulist
from launcher.errors import Finding, Fix
from launcher.ir.config import NumaConfig
from launcher.ir.plan import ServerPlan
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.plan.cpuset import physical_cores
from launcher.plan.devices import worst
from launcher.plan.memory.placement import fully_offloaded

CROWDED_SHOWN = 4


def cpus_of(server: ServerPlan) -> frozenset[int] | None:
    """The CPUs that a server may use; None for all, or where the list is no list."""
    try:
        return parse_cpulist(server.config.cpus) if server.config.cpus else None
    except ValueError:
        return None


def busy_threads(server: ServerPlan) -> int:
    """Threads that compute while a server answers: with all layers on cards one, which feeds them.

    ggml hands a graph's splits to the backends in turn; the CPU's share is then no more than the tokens' embeddings.
    """
    whole = fully_offloaded(server.model.architecture.n_layer, server.settings)
    return min(1, server.settings.threads) if whole else server.settings.threads


def _has(name: str, threads: int) -> str:
    """A note on one who computes."""
    return f"{name} has {threads} thread{'' if threads == 1 else 's'}"


def check_threads(planning: Planning) -> Iterator[Finding]:
    """`cpu/oversubscribed`: more threads at once than physical cores, in all or in a server's own cpuset."""
    cpu = planning.fleet.hardware.cpu
    cores = cpu.physical_cores
    services = [s for s in planning.services if s.config.threads and s.starts != "never"]
    beside = sum(s.config.threads for s in services)
    threads = worst(planning.servers, busy_threads)
    if threads + beside > cores:
        many = sorted(planning.running, key=lambda s: (-busy_threads(s), s.name))
        notes = [_has(s.name, busy_threads(s)) for s in many[:CROWDED_SHOWN]]
        if len(many) > CROWDED_SHOWN:
            notes.append(f"and {len(many) - CROWDED_SHOWN} more")
        yield finding(
            "warning",
            "cpu/oversubscribed",
            "hardware.cpu.physical_cores",
            f"{threads} threads of servers that may be busy at once{f' and {beside} of services' if beside else ''}, "
            f"on {cores} physical cores ({cpu.logical_cores} logical)",
            notes=(*notes, *(_has(f"service {s.name}", s.config.threads) for s in services)),
        )
    for server in planning.running:
        pinned = cpus_of(server)
        own, what = (physical_cores(pinned, cpu), "its cpuset") if pinned else (cores, "the host")
        if server.settings.threads > own:
            message = f"{server.settings.threads} threads, but {what} has {own} physical cores"
            fixes = (set_field(server, "threads", own),)
            yield finding("warning", "cpu/oversubscribed", f"{server.key}.threads", message, fixes=fixes)


def check_cpusets(planning: Planning) -> Iterator[Finding]:
    """`cpu/unknown-cpus`, `cpu/cpuset-straddles`: CPUs that are not there; several nodes without a memory policy."""
    cpu = planning.fleet.hardware.cpu
    try:
        nodes = {n.id: parse_cpulist(n.cpus) for n in cpu.nodes}
    except ValueError:
        nodes = {}
    there = frozenset[int]().union(*nodes.values()) or frozenset(range(cpu.logical_cores))
    for server in planning.running:
        pinned = cpus_of(server)
        if not pinned:
            continue
        key = f"{server.key}.cpus"
        if not pinned <= there:
            message = f"cpus {server.config.cpus}: the host has no CPU {format_cpulist(pinned - there)}"
            fixes = (set_field(server, "cpus", "null", "leaves it to the scheduler"),)
            yield finding("error", "cpu/unknown-cpus", key, message, fixes=fixes)
        touched = [node for node, own in nodes.items() if pinned & own]
        if len(touched) > 1 and not server.config.numa:
            message = f"cpus {server.config.cpus} lie on nodes {', '.join(map(str, touched))}: give numa a policy"
            policy = f"+{server.key}.numa.policy=interleave +{server.key}.numa.nodes=[{','.join(map(str, touched))}]"
            fixes = (Fix(override=policy, effect="spreads its memory over these nodes"),)
            yield finding("warning", "cpu/cpuset-straddles", key, message, fixes=fixes)


def check_overlap(planning: Planning) -> Iterator[Finding]:
    """`cpu/cpuset-overlap`: servers pinned to some of the same cores, with more threads together than these have."""
    pinned = {s.name: (s, cpus) for s in planning.running if (cpus := cpus_of(s))}
    crowded: list[str] = []
    for name, (server, cpus) in pinned.items():
        groups = {server.config.exclusive} - {None}
        rivals = [
            (other, theirs)
            for other, theirs in pinned.values()
            if other.name != name and theirs & cpus and other.config.exclusive not in groups
        ]
        threads = server.settings.threads + worst([r for r, _ in rivals], lambda s: s.settings.threads)
        everywhere = cpus.union(*(theirs for _, theirs in rivals))
        cores = physical_cores(everywhere, planning.fleet.hardware.cpu)
        if rivals and threads > cores:
            names = ", ".join(r.name for r, _ in rivals)
            crowded.append(f"{name} on {server.config.cpus} meets {names}: {threads} threads on {cores} cores")
    if crowded:
        first = crowded[0].partition(" ")[0]
        message = (
            f"{len(crowded)} servers share cores with others and have more threads than these: busy together, all slow"
        )
        rest = (f"and {len(crowded) - CROWDED_SHOWN} more",) if len(crowded) > CROWDED_SHOWN else ()
        notes = (*crowded[:CROWDED_SHOWN], *rest)
        yield finding("note", "cpu/cpuset-overlap", f"servers.{first}.cpus", message, notes=notes)


def check_numa(planning: Planning) -> Iterator[Finding]:
    """`cpu/numa-policy`: a policy that numactl refuses, or that names nodes which the host has not."""
    known = [n.id for n in planning.fleet.hardware.cpu.nodes] or [0]
    for server in planning.running:
        if server.config.numa is None:
            continue
        wrong = _wrong_policy(server.config.numa, known)
        if wrong:
            node = next((n for n in server.config.numa.nodes if n in known), known[0])
            fix = Fix(override=f"{server.key}.numa.nodes=[{node}]", effect=f"one node, {node}")
            yield finding("error", "cpu/numa-policy", f"{server.key}.numa", wrong, fixes=(fix,))


def _wrong_policy(numa: NumaConfig, known: list[int]) -> str:
    """What is wrong with a memory policy; "" when it is in order."""
    unknown = [str(n) for n in numa.nodes if n not in known]
    if unknown:
        return f"the host has no NUMA node {', '.join(unknown)}; it has {', '.join(map(str, known))}"
    if numa.policy == "preferred" and len(numa.nodes) != 1:
        return f"preferred takes one node, {len(numa.nodes)} are named"
    return "" if numa.nodes or numa.policy == "interleave" else f"{numa.policy} names no node"
