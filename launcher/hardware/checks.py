"""Checks the plan against this host, now: files, memory, locks, ports, tools; from gathered facts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from launcher.base.addresses import is_path
from launcher.cpulist import parse_cpulist
from launcher.errors import Finding, Fix, fault
from launcher.hardware.facts import HostFacts, programs_of
from launcher.ir.fleet import FleetManifest, ServerUnit
from launcher.sizes import GIB, gib

LOG_ROOM_BYTES = 1 * GIB
_FILES_SHOWN = 3


def check_host(manifest: FleetManifest, facts: HostFacts) -> tuple[Finding, ...]:
    """Findings for everything that prevents this host from running `manifest` now, or from running it well."""
    return tuple(finding for check in CHECKS for finding in check(manifest, facts))


_warning = partial(fault, severity="warning")


def _files(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """One finding for each set of missing files, with the servers that need them."""
    needed: dict[tuple[str, ...], list[str]] = {}
    for server in manifest.servers:
        gone = tuple(p for p in server.files if p in facts.missing_files) if server.start != "never" else ()
        if gone:
            needed.setdefault(gone, []).append(server.name)
    for gone, servers in needed.items():
        count = f"{len(gone)} model files" if len(gone) > 1 else "a model file"
        yield fault(
            "host/file-missing",
            f"servers.{servers[0]}.model",
            f"{', '.join(servers)}: {count} cannot be read",
            *(f"{p}: {facts.missing_files[p]}" for p in gone[:_FILES_SHOWN]),
            *((f"and {len(gone) - _FILES_SHOWN} more",) if len(gone) > _FILES_SHOWN else ()),
            "put the files there, or name where they are: hardware.model_dir=DIR",
        )


def _programs(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """A binary or numactl that is not installed or cannot be run."""
    for program, why in facts.missing_programs.items():
        users = [s.name for s in manifest.servers if program in programs_of(s)]
        if not users:
            continue
        fixes: tuple[Fix, ...] = ()
        if Path(program).name == "numactl":
            code, remedy = "host/numactl-missing", "apt-get install numactl, or drop the servers' numa policy"
            without = " ".join(f"servers.{name}.numa=null" for name in users)
            fixes = (Fix(override=without, effect="leaves their memory to the kernel"),)
        else:
            code, remedy = "engine/missing-binary", "engines.default.binary=/path/to/llama-server, or engine=embedded"
        who = f"{len(users)} servers run" if len(users) > 1 else "1 server runs"
        yield fault(code, "engines.default.binary", f"{program} {why}; {who} it", remedy, fixes=fixes)


def _services(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """A service whose program or container engine is not installed (a warning if the service is not fatal).

    Also a container whose image is missing: its engine fetches it at the start, which then takes longer.
    """
    for service in manifest.services:
        if not service.argv:
            continue
        program, image, without = service.argv[0], service.container, f"without the service: ~services.{service.name}"
        if program in facts.missing_programs:
            key = "runtime.container_engine" if image else f"services.{service.name}.command"
            yield fault(
                "host/service-program-missing",
                key,
                f"{service.name}: {program}{f', which runs its image {image},' if image else ''}"
                f" {facts.missing_programs[program]}",
                "install podman, or choose docker" if image else "install it, or put your own command there",
                without,
                severity="error" if service.fatal else "warning",
            )
        if image in facts.missing_images:
            yield _warning(
                "host/image-missing",
                f"services.{service.name}.container.image",
                f"{service.name}: {program} does not have the image {image} here",
                f"{program} pull {image}; else its start fetches it, if it can within {service.start_timeout_s:g} s",
                without,
            )


def _upstreams(_manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """An upstream that does not answer, or not correctly: the fleet runs without it."""
    note = "who asks for its models gets an error, or their fallback, until it does"
    for name, wrong in facts.unwell_upstreams.items():
        yield _warning("host/upstream-unwell", f"upstreams.{name}", f"{name} {wrong}", note)


def _boot_set(manifest: FleetManifest) -> list[ServerUnit]:
    """Servers that run after the start: of an exclusive group, only the default member."""
    return [s for s in manifest.servers if s.start == "boot" and (s.exclusive is None or s.default)]


def _ram_needed(manifest: FleetManifest) -> tuple[int, int]:
    """Bytes that the boot set commits, and those of its model files; the manifest counts shared files once."""
    needs = [m for s in _boot_set(manifest) for m in s.memory if m.device == "ram"]
    services = sum(s.ram_bytes for s in manifest.services if s.start == "boot")
    return sum(m.committed_bytes for m in needs) + services, sum(m.file_bytes for m in needs)


def _card_needed(manifest: FleetManifest, device: str) -> int:
    """Bytes that the boot set commits on a device."""
    return sum(m.committed_bytes for s in _boot_set(manifest) for m in s.memory if m.device == device)


def _ram(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """The memory of the boot set against what is available now; our own running servers count once."""
    committed, filed = _ram_needed(manifest)
    room = facts.host.available_bytes + facts.our_bytes
    if committed > room:
        sizes = {s.name: sum(m.committed_bytes + m.file_bytes for m in s.memory) for s in _boot_set(manifest)}
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        yield fault(
            "host/ram-short",
            "hardware.ram_bytes",
            f"{gib(committed + filed - room)} of RAM are missing: the fleet needs {gib(committed + filed)} "
            f"({gib(committed)} committed, {gib(filed)} of model files) and {gib(room)} are available now",
            *(f"{name} needs {gib(sizes[name])}" for name in biggest),
        )
    elif committed + filed > room:
        yield _warning(
            "host/ram-tight",
            "hardware.ram_bytes",
            f"model files will not all stay in memory: {gib(committed)} committed and {gib(filed)} of files, "
            f"{gib(room)} available now",
            "pages are read again from disk when they are needed: slow, not fatal",
        )


def _vram(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Planned GPU memory against what is free on the card of that name."""
    cards = {g.name: g for g in facts.host.gpus}
    for name in (d.name for d in manifest.devices if d.kind == "gpu"):
        need, card = _card_needed(manifest, name), cards.get(name)
        if card is None:
            if need and name not in facts.unseen_gpus:
                yield fault(
                    "host/gpu-missing",
                    f"hardware.gpus.{name}",
                    f"no GPU {name} on this host; the fleet needs {gib(need)} on it",
                    f"this host has: {', '.join(cards) or 'no GPU'}",
                    fixes=(Fix(override="hardware=auto", effect="plans for the devices of this host"),),
                )
        elif need > card.free_bytes and facts.our_bytes == 0:
            message = f"{name}: {gib(need)} needed, {gib(card.free_bytes)} of {gib(card.vram_bytes)} free now"
            yield fault("host/vram-short", f"hardware.gpus.{name}.vram_bytes", message)


def _memlock(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Locked bytes of each process against RLIMIT_MEMLOCK."""
    limit = facts.host.memlock_bytes
    for server in manifest.servers:
        locked, key = sum(m.locked_bytes for m in server.memory), f"servers.{server.name}.load_mode"
        if limit is not None and locked > limit:
            yield fault(
                "host/memlock",
                key,
                f"{server.name} locks {gib(locked)} but RLIMIT_MEMLOCK is {gib(limit)}: it would not lock",
                "ulimit -l unlimited; under systemd LimitMEMLOCK=infinity (rendered units have it)",
                fixes=(Fix(override=f"{key}=mmap", effect="does not lock"),),
            )


def _ports(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Ports, and paths of unix sockets, that other processes hold."""
    ports = {s.name: s.port for s in manifest.servers} | {s.name: s.port for s in manifest.services}
    servers = {server.name: server for server in manifest.servers}
    for name, why in facts.taken_ports.items():
        if name in servers and is_path(servers[name].host):
            yield _taken_path(name, servers[name].host, why)
            continue
        key = "runtime.front.port" if name == "front" else f"ports.{name}"
        override = f"servers.{name}.port" if name in servers else key
        other = _other_port(ports.get(name, 8000), {*ports.values()})
        number = f"port {ports[name]}" if name in ports else "the front's port"
        note = f"nothing that launch did not start is stopped; stop it, or choose another port: {override}={other}"
        yield fault("host/port-taken", key, f"{name}: {number} {why}", note)


def _taken_path(server: str, path: str, why: str) -> Finding:
    key = f"servers.{server}.host"
    notes = [f"nothing that launch did not start is stopped or removed; another path, or a port: {key}=127.0.0.1"]
    if "cannot be bound" in why:
        notes.append("rendered units make a folder of their own below /run")
    return fault("host/port-taken", key, f"{server}: {path} {why}", *notes)


def _other_port(taken: int, planned: set[int]) -> int:
    """A port near `taken` that the plan does not use; whether it is free is not checked."""
    others = (port for port in range(taken + 100, taken + 1000) if port < 65536 and port not in planned)
    return next(others, 18800)


def _cpus(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """CPUs and NUMA nodes of the plan that this host does not have."""
    ours = parse_cpulist(facts.host.cpus)
    nodes = {str(n.id) for n in facts.host.nodes} or {"0"}
    on_cpus: dict[str, list[str]] = {}
    on_nodes: dict[str, list[str]] = {}
    for server in manifest.servers:
        cpus, wanted_nodes = _pinned(server.argv)
        if cpus and not parse_cpulist(cpus) <= ours:
            on_cpus.setdefault(cpus, []).append(server.name)
        if strange := ", ".join(n for n in wanted_nodes if n not in nodes):
            on_nodes.setdefault(strange, []).append(server.name)
    for cpus, names in on_cpus.items():
        where = f"on CPUs {cpus}, and this host gives us {facts.host.cpus}"
        yield _missing_binding("host/cpus-missing", names, "cpus", where, "leaves it to the scheduler")
    for strange, names in on_nodes.items():
        where = f"with memory of NUMA node {strange}; this host has {', '.join(sorted(nodes))}"
        yield _missing_binding("host/nodes-missing", names, "numa", where, "leaves its memory to the kernel")


def _missing_binding(code: str, names: list[str], field: str, where: str, effect: str) -> Finding:
    """The finding for servers bound to CPUs or nodes that are missing; a fix by override if it is one server."""
    key, alone = f"servers.{names[0]}.{field}", len(names) == 1
    message = f"{', '.join(names)} run{'s' * alone} {where}"
    if alone:
        return fault(code, key, message, fixes=(Fix(override=f"{key}=null", effect=effect),))
    return fault(code, key, message, f"{key}=null, and so for each of them, {effect}")


def _quota(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Threads of each server against the CPU quota of our cgroup."""
    quota = facts.host.cpu_quota
    for server in manifest.servers:
        threads, key = _threads(server), f"servers.{server.name}.threads"
        if quota is not None and server.start != "never" and threads > quota:
            yield _warning(
                "host/cpu-quota",
                key,
                f"{server.name} has {threads} threads, but the cgroup here is given {quota:g} CPUs' time: "
                "all of them wait whenever it is used up",
                fixes=(Fix(override=f"{key}={max(1, int(quota))}", effect="as many as are given"),),
            )


def _threads(server: ServerUnit) -> int:
    """`--threads` of a command line; 0 where it has none."""
    argv = server.argv
    value = argv[argv.index("--threads") + 1] if "--threads" in argv[:-1] else ""
    return int(value) if value.isdecimal() else 0


def _pinned(argv: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The CPU list and the NUMA nodes in a command line's prefix; empty where it names none."""
    wrapper = Path(argv[0]).name
    if wrapper == "taskset":
        return argv[argv.index("--cpu-list") + 1], ()
    if wrapper != "numactl":
        return "", ()
    options = dict(word.partition("=")[::2] for word in argv[1 : argv.index("--")])
    named = next((options[o] for o in ("--membind", "--preferred", "--interleave") if o in options), "all")
    return options.get("--physcpubind", ""), () if named == "all" else tuple(named.split(","))


def _disks(_manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Free space for state and logs, and for model files in the config that are not here yet."""
    for path, free in facts.disk_free.items():
        if free < LOG_ROOM_BYTES:
            message = f"{gib(free)} free for state and logs in {path}"
            yield _warning("host/disk-short", "runtime.state_dir", message, "runtime.state_dir=DIR puts them elsewhere")
    for folder, need in facts.models_to_come.items():
        free = facts.models_free[folder]
        if need > free:
            message = f"{gib(need)} of model files are not here yet, and {gib(free)} are free in {folder}"
            note = "all quantizations that the config names of the fleet's models; `launch pull` brings them"
            yield _warning("host/models-no-room", "hardware.model_dir", message, note)


CHECKS: tuple[Callable[[FleetManifest, HostFacts], Iterator[Finding]], ...] = (
    *(_ram, _vram, _files, _programs, _services, _memlock, _ports, _cpus, _quota, _disks, _upstreams),
)


def describe_checks(manifest: FleetManifest, facts: HostFacts) -> tuple[tuple[str, str], ...]:
    """What was checked, with or without a finding: (subject, result), in the order of the checks.

    Memory is that of servers which run after a start.
    """
    return tuple(_subjects(manifest, facts))


def _subjects(manifest: FleetManifest, facts: HostFacts) -> Iterator[tuple[str, str]]:
    host = facts.host
    committed, filed = _ram_needed(manifest)
    ours = f" beside {gib(facts.our_bytes)} that this fleet already holds" if facts.our_bytes else ""
    need_text = f"{gib(committed)} and {gib(filed)} of model files needed"
    yield "memory", f"{need_text}, {gib(host.available_bytes)} of {gib(host.ram_bytes)} available now{ours}"
    for device in (d for d in manifest.devices if d.kind == "gpu"):
        need = _card_needed(manifest, device.name)
        card = next((g for g in host.gpus if g.name == device.name), None)
        none = "nobody here can list it" if device.name in facts.unseen_gpus else "no such card"
        there = f"{gib(card.free_bytes)} of {gib(card.vram_bytes)} free on {card.model}" if card else none
        yield device.name, f"{gib(need)} needed, {there}"
    files = {p for s in manifest.servers if s.start != "never" for p in s.files}
    gone = files & set(facts.missing_files)
    yield "files", f"{len(files)} to be read, {f'{len(gone)} cannot be read' if gone else 'all readable'}"
    missing = ", ".join(f"{program} {why}" for program, why in facts.missing_programs.items())
    yield "programs", missing or "every program found"
    locked = sum(m.locked_bytes for s in manifest.servers for m in s.memory)
    limit = "no limit" if host.memlock_bytes is None else f"the limit is {gib(host.memlock_bytes)} a process"
    yield "locks", f"{gib(locked)} to be locked, {limit}" if locked else f"nothing to be locked, {limit}"
    listening = sum(1 for s in manifest.servers if s.start != "never") + len(manifest.services)
    taken = ", ".join(f"{name} {why}" for name, why in facts.taken_ports.items())
    yield "ports", taken or f"free, or ours: {listening} and the front"
    quota = "" if host.cpu_quota is None else f", {host.cpu_quota:g} CPUs' time"
    nodes = max(1, len(host.nodes))
    numa = f"{nodes} NUMA node{'s' * (nodes > 1)}"
    yield "cpus", f"{host.physical_cores} cores, CPUs {host.cpus}, {numa}{quota}"
    for path, free in facts.disk_free.items():
        yield "disk", f"{gib(free)} free for state and logs in {path}"
    for folder, need in facts.models_to_come.items():
        yield "models", f"{gib(need)} not here yet, {gib(facts.models_free[folder])} free in {folder}"
