"""Checks of processes: threads, cpusets, memory policies, ports, limits and devices. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from launcher.base.addresses import address_text, is_path, port_or_path
from launcher.cpulist import CPUS_MAX, format_cpulist, parse_cpulist
from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.architectures import traits
from launcher.ir.backends import BACKENDS
from launcher.ir.plan import ServerPlan
from launcher.plan.builds import TENSOR_SPLIT_SEEN
from launcher.plan.checks.planning import Planning, set_fields
from launcher.plan.devices import worst
from launcher.plan.hosts import starts, tier_of
from launcher.plan.memory.compute import quantised
from launcher.plan.memory.layout import fully_offloaded
from launcher.plan.settling import physical_cores
from launcher.sizes import gib

CROWDED_SHOWN = 4


def cpus_of(server: ServerPlan) -> frozenset[int] | None:
    """The CPUs that a server may use; None: all, or the list is malformed."""
    try:
        return parse_cpulist(server.config.cpus) if server.config.cpus else None
    except ValueError:
        return None


def busy_threads(server: ServerPlan) -> int:
    """Threads that compute while a server answers: one, which feeds the cards, with all layers on cards.

    ggml hands a graph's splits to the backends in turn; the CPU's share is then only the embedding of tokens.
    """
    whole = fully_offloaded(server.model.architecture.n_layer, server.settings)
    return min(1, server.settings.threads) if whole else server.settings.threads


def check_threads(planning: Planning) -> Iterator[Finding]:
    """`cpu/oversubscribed`: more threads at once than physical cores, in all or in a server's own cpuset."""
    cpu = planning.fleet.hardware.cpu
    cores = cpu.physical_cores
    services = [s for s in planning.services if s.config.threads and s.starts != "never"]
    beside = sum(s.config.threads for s in services)
    threads = worst(planning.servers, busy_threads)
    if threads + beside > cores:
        computing = sorted(((busy_threads(s), s.name) for s in planning.running), key=lambda one: (-one[0], one[1]))
        busy = [*computing[:CROWDED_SHOWN], *((s.config.threads, f"service {s.name}") for s in services)]
        notes = [f"{name} has {n} thread{'' if n == 1 else 's'}" for n, name in busy]
        if len(computing) > CROWDED_SHOWN:
            notes.insert(CROWDED_SHOWN, f"and {len(computing) - CROWDED_SHOWN} more")
        message = (
            f"{threads} threads of servers that may be busy at once{f' and {beside} of services' if beside else ''}, "
            f"on {cores} physical cores ({cpu.logical_cores} logical)"
        )
        yield fault("cpu/oversubscribed", "hardware.cpu.physical_cores", message, *(tuple(notes)), severity="warning")
    for server in planning.running:
        pinned = cpus_of(server)
        own, what = (physical_cores(pinned, cpu), "its cpuset") if pinned else (cores, "the host")
        if server.settings.threads > own:
            message = f"{server.settings.threads} threads, but {what} has {own} physical cores"
            fixes = (set_fields(server, threads=own),)
            yield fault("cpu/oversubscribed", f"{server.key}.threads", message, fixes=fixes, severity="warning")


def check_cpusets(planning: Planning) -> Iterator[Finding]:
    """`cpu/unknown-cpus`, `cpu/cpuset-straddles`: CPUs that the host lacks; several nodes without a memory policy."""
    cpu = planning.fleet.hardware.cpu
    try:
        nodes = {n.id: parse_cpulist(n.cpus.replace(" ", "")) for n in cpu.nodes}
    except ValueError:
        nodes = {}
    there = frozenset[int]().union(*nodes.values()) or frozenset(range(min(cpu.logical_cores, CPUS_MAX)))
    for server in planning.running:
        pinned = cpus_of(server)
        if not pinned:
            continue
        key = f"{server.key}.cpus"
        if not pinned <= there:
            message = f"cpus {server.config.cpus}: the host has no CPU {format_cpulist(pinned - there)}"
            fixes = (set_fields(server, "leaves it to the scheduler", cpus="null"),)
            yield fault("cpu/unknown-cpus", key, message, fixes=fixes)
        touched = [node for node, own in nodes.items() if pinned & own]
        if len(touched) > 1 and not server.config.numa:
            message = f"cpus {server.config.cpus} lie on nodes {', '.join(map(str, touched))}: give numa a policy"
            policy = f"+{server.key}.numa.policy=interleave +{server.key}.numa.nodes=[{','.join(map(str, touched))}]"
            fixes = (Fix(override=policy, effect="spreads its memory over these nodes"),)
            yield fault("cpu/cpuset-straddles", key, message, fixes=fixes, severity="warning")


def check_overlap(planning: Planning) -> Iterator[Finding]:
    """`cpu/cpuset-overlap`: servers pinned to the same cores with more threads together than these cores."""
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
        yield fault("cpu/cpuset-overlap", f"servers.{first}.cpus", message, *notes, severity="note")


def check_numa(planning: Planning) -> Iterator[Finding]:
    """`cpu/numa-policy`: a policy that numactl refuses, or nodes that the host lacks."""
    known = [n.id for n in planning.fleet.hardware.cpu.nodes] or [0]
    for server in planning.running:
        numa = server.config.numa
        if numa is None:
            continue
        unknown = [str(n) for n in numa.nodes if n not in known]
        if unknown:
            wrong = f"the host has no NUMA node {', '.join(unknown)}; it has {', '.join(map(str, known))}"
        elif numa.policy == "preferred" and len(numa.nodes) != 1:
            wrong = f"preferred takes one node, {len(numa.nodes)} are named"
        elif not numa.nodes and numa.policy != "interleave":
            wrong = f"{numa.policy} names no node"
        else:
            continue
        node = next((n for n in numa.nodes if n in known), known[0])
        fix = Fix(override=f"{server.key}.numa.nodes=[{node}]", effect=f"one node, {node}")
        yield fault("cpu/numa-policy", f"{server.key}.numa", wrong, fixes=(fix,))


ANYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, never bound


class Listener(NamedTuple):
    """A listening socket and its owner. `exclusive`: members of one group take turns."""

    key: str
    port_key: str
    """The config key of its port: its own field or its entry in `ports`; for a unix socket its path."""
    host: str
    port: int
    exclusive: str | None = None


def listeners(planning: Planning) -> Iterator[Listener]:
    """Every listening socket of the fleet; the front once, also where a service stands for it."""
    for server in planning.running:
        host, port = server.config.host, server.port
        field = "host" if is_path(host) else "port"
        written = is_path(host) or server.config.port
        if port or is_path(host):
            where = f"{server.key}.{field}" if written else f"ports.{server.name}"
            yield Listener(server.key, where, host, port, server.config.exclusive)
    for service in planning.services:
        if service.port and service.config.builtin is None and service.starts != "never":
            key = f"services.{service.name}"
            where = f"{key}.port" if service.config.port else f"ports.{service.name}"
            yield Listener(key, where, service.config.host, service.port)
    front = planning.fleet.runtime.front
    for host in dict.fromkeys((front.host, *front.listen)) if planning.front else ():
        path = is_path(host) and host in front.listen
        where = "runtime.front.listen" if path else "runtime.front.port"
        yield Listener("runtime.front", where, host, 0 if path else front.port)


def check_servers(planning: Planning) -> Iterator[Finding]:
    """`plan/no-servers`: nothing would ever be started."""
    fleet = planning.fleet
    cold = [name for name, server in fleet.servers.items() if starts(fleet, server.tier) == "never"]
    beside = fleet.upstreams or any(s.config.builtin is None and s.starts != "never" for s in planning.services)
    if beside or len(cold) < len(fleet.servers):
        return
    boot = tier_of(fleet, "boot")
    message = f"the profile {fleet.profile.name} starts nothing: " + (
        "all of its servers are in tiers that never start" if cold else "it has no servers"
    )
    # who has servers needs no word on how to get one
    notes = (
        "name servers in the profile's defaults list, or add one: +server=[NAME]",
        "a file of your own gets one by `launch add FILE.gguf`",
    )
    fixes = tuple(Fix(override=f"servers.{name}.tier={boot}", effect="starts it") for name in cold[:1] if boot)
    yield fault("plan/no-servers", "profile.name", message, *(() if cold else notes), fixes=fixes)


def check_port_conflicts(planning: Planning) -> Iterator[Finding]:
    """`plan/port-conflict`: two processes with one address or path; or one number twice in `ports`.

    Both places get a finding, because either may be the wrong one.
    """
    clashes: defaultdict[str, list[str]] = defaultdict(list)
    found: dict[str, Listener] = {}
    by_place: defaultdict[str, list[Listener]] = defaultdict(list)
    for listener in listeners(planning):
        by_place[port_or_path(listener.host, listener.port)].append(listener)
    for one, other in (pair for same in by_place.values() for pair in combinations(same, 2)):
        same_host = one.host == other.host or {one.host, other.host} & ANYWHERE
        turns = one.exclusive is not None and one.exclusive == other.exclusive
        if same_host and not turns and one.key != other.key:
            found |= {one.key: one, other.key: other}
            clashes[one.key].append(other.key)
            clashes[other.key].append(one.key)
    for key, others in clashes.items():
        listener = found[key]
        others_said = " and ".join(dict.fromkeys(others))
        message = f"{key} listens on {address_text(listener.host, listener.port)}, and so does {others_said}"
        place_kind = "path" if is_path(listener.host) else "port"
        note = f"give one of them another {place_kind}"
        yield fault("plan/port-conflict", listener.port_key, message, note)
    names: dict[int, str] = {}
    taking_turns = {s.name: s.config.exclusive for s in planning.servers if s.config.exclusive}
    stated = {found[key].port_key for key in clashes}
    for name, port in planning.fleet.ports.items():
        other_name = names.setdefault(port, name)
        shared = name in taking_turns and taking_turns.get(other_name) == taking_turns[name]
        if other_name != name and not shared and not {f"ports.{name}", f"ports.{other_name}"} <= stated:
            message = f"ports gives {port} to {other_name} and to {name}"
            yield fault("plan/port-conflict", f"ports.{name}", message)


def check_unused_ports(planning: Planning) -> Iterator[Finding]:
    """`plan/port-unused`: a documented port that nothing uses; a stated number of servers that is wrong."""
    fleet = planning.fleet
    used = {listener.port for listener in listeners(planning)} | {s.port for s in planning.services}
    used |= {s.port for s in planning.servers}
    unused = {name: port for name, port in fleet.ports.items() if port not in used}
    if unused:
        listed = ", ".join(f"{port} ({name})" for name, port in sorted(unused.items(), key=lambda item: item[1]))
        key = f"ports.{next(iter(unused))}" if len(unused) == 1 else "ports"
        yield fault("plan/port-unused", key, f"nothing in this deployment is started on {listed}", severity="note")
    if fleet.stated is None:
        return
    source = f" ({fleet.stated.source})" if fleet.stated.source else ""
    up = {
        "servers": sum(1 for s in planning.servers if s.initial),
        "services": sum(1 for s in planning.services if s.starts == "boot"),
    }
    for what, count in up.items():
        stated = getattr(fleet.stated, what)
        if stated is not None and stated != count:
            message = f"{stated} {what} are stated{source}, {count} are up after start"
            yield fault("plan/port-unused", f"stated.{what}", message, severity="note")


def check_memlock(planning: Planning) -> Iterator[Finding]:
    """`plan/memlock-limit`: a process locks more than RLIMIT_MEMLOCK allows."""
    limit = planning.fleet.hardware.memlock_bytes
    if limit is None:
        return
    for server in planning.running:
        locked = sum(part.locked for part in server.parts)
        if locked > limit:
            message = f"{gib(locked)} is to be locked, the limit (memlock) is {gib(limit)}: it would not be pinned"
            fixes = (set_fields(server, load_mode="mmap"),)
            yield fault("plan/memlock-limit", f"{server.key}.load_mode", message, fixes=fixes, severity="warning")


def check_offload(planning: Planning) -> Iterator[Finding]:
    """`plan/gpu-unused-layers`: devices without layers, or layers without devices."""
    for server in planning.running:
        asked, devices = server.config.n_gpu_layers, server.settings.devices
        instead: object = "all"
        if devices and not server.settings.n_gpu_layers:
            message = f"devices are given ({', '.join(devices)}), but no layer is offloaded"
        elif not server.config.devices and asked not in (0, "auto"):
            message = f"n_gpu_layers={asked}, but no devices are given: the server runs on the CPU"
            instead = 0
        else:
            continue
        fixes = (set_fields(server, n_gpu_layers=instead),)
        yield fault("plan/gpu-unused-layers", f"{server.key}.n_gpu_layers", message, fixes=fixes, severity="warning")


def check_split_mode(planning: Planning) -> Iterator[Finding]:
    """`plan/split-mode`: modes that llama-server refuses, and a note that rows were not compared."""
    for server in planning.running:
        mode, devices, arch = server.config.split_mode, server.settings.devices, server.model.architecture.arch
        if mode in ("layer", "none") or len(devices) < 2:
            continue
        backends = {planning.fleet.hardware.gpus[d].backend for d in devices}
        unable = sorted(name for name in backends if not BACKENDS[name].splits_rows)
        severity: Severity = "error"
        effect = ""
        if mode == "tensor" and quantised(server.settings):
            message = "llama-server refuses a quantised K/V cache where devices share every tensor"
        elif mode == "row" and unable:
            names = ", ".join(unable)
            message = f"{names} cannot split matrices by rows: llama-server ends, as it does not support split buffers"
        elif mode == "tensor" and not traits(arch).splits_tensors:
            severity = "error" if 0 < server.settings.build <= TENSOR_SPLIT_SEEN else "warning"
            message = f"builds up to b{TENSOR_SPLIT_SEEN} do not share tensors of {arch} models"
        elif mode == "row":
            severity, effect = "note", "whole layers, which were compared"
            message = "what each device takes under split_mode row is computed, not compared with a server"
        else:
            continue
        fixes = (set_fields(server, effect, split_mode="layer"),)
        yield fault("plan/split-mode", f"{server.key}.split_mode", message, fixes=fixes, severity=severity)


def check_slot_saving(planning: Planning) -> Iterator[Finding]:
    """`plan/slot-save-path`: not an absolute path. `plan/slot-save-useless`: the restored state is discarded.

    Measured on real servers (tests/supervise/test_slots.py): a sliding window without `swa_full` finds no cached token.
    """
    for server in planning.running:
        path = server.config.slot_save_path
        if path is None:
            continue
        key = f"{server.key}.slot_save_path"
        if not path.startswith("/"):
            message = f"{path!r} is no absolute path: where it would be depends on who starts the server"
            yield fault("plan/slot-save-path", key, message)
        if server.model.architecture.n_swa and not server.settings.swa_full:
            model = server.config.model
            message = f"{model} has a sliding window: after a swap the server finds none of what it restores"
            fixes = (set_fields(server, "keeps the whole context of every layer", swa_full=True),)
            yield fault("plan/slot-save-useless", key, message, fixes=fixes, severity="warning")
        elif server.config.exclusive is None:
            message = "slots are saved when another of an exclusive group takes its place, and it is in no such group"
            yield fault("plan/slot-save-useless", key, message, severity="warning")


CHECKS = (
    check_threads,
    check_cpusets,
    check_overlap,
    check_numa,
    check_port_conflicts,
    check_memlock,
    check_offload,
    check_split_mode,
    check_slot_saving,
)
WHOLE = (check_servers, check_unused_ports)
