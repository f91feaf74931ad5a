"""The plan against this host, now: files, memory, locks, ports, tools. Judges facts that were gathered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.base.addresses import is_path
from launcher.cpulist import parse_cpulist
from launcher.errors import Finding, Fix
from launcher.hardware.facts import HostFacts, programs_of
from launcher.ir.fleet import FleetManifest, ServerUnit
from launcher.sizes import GIB, gib

LOG_ROOM_BYTES = 1 * GIB
_FILES_SHOWN = 3


HostCheck = Callable[[FleetManifest, HostFacts], Iterator[Finding]]


def check_host(manifest: FleetManifest, facts: HostFacts) -> tuple[Finding, ...]:
    """Every reason why this host cannot run `manifest` now, or may not do it well."""
    return tuple(finding for check in CHECKS for finding in check(manifest, facts))


def _files(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """One finding for each set of files that are not there, with the servers that need them."""
    needed: dict[tuple[str, ...], list[str]] = {}
    for server in manifest.servers:
        gone = tuple(p for p in server.files if p in facts.missing_files) if server.start != "never" else ()
        if gone:
            needed.setdefault(gone, []).append(server.name)
    for gone, servers in needed.items():
        count = f"{len(gone)} model files" if len(gone) > 1 else "a model file"
        yield Finding(
            code="host/file-missing",
            severity="error",
            key=f"servers.{servers[0]}.model",
            message=f"{', '.join(servers)}: {count} cannot be read",
            notes=(
                *(f"{p}: {facts.missing_files[p]}" for p in gone[:_FILES_SHOWN]),
                *((f"and {len(gone) - _FILES_SHOWN} more",) if len(gone) > _FILES_SHOWN else ()),
                "put the files there, or name where they are: hardware.model_dir=DIR",
            ),
        )


def _programs_found(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """A binary or numactl that is not installed, or cannot be run as it is."""
    for program, why in facts.missing_programs.items():
        users = [s.name for s in manifest.servers if program in programs_of(s)]
        fixes: tuple[Fix, ...] = ()
        if Path(program).name == "numactl":
            code, remedy = "host/numactl-missing", "apt-get install numactl, or drop the servers' numa policy"
            without = " ".join(f"servers.{name}.numa=null" for name in users)
            fixes = (Fix(override=without, effect="leaves their memory to the kernel"),)
        else:
            code, remedy = "engine/missing-binary", "engines.default.binary=/path/to/llama-server, or engine=embedded"
        who = f"{len(users)} servers run" if len(users) > 1 else "1 server runs"
        if users:
            yield Finding(
                code=code,
                severity="error",
                key="engines.default.binary",
                message=f"{program} {why}; {who} it",
                notes=(remedy,),
                fixes=fixes,
            )


def _services_found(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """A service whose program, or container engine, is not installed; one that is not fatal refuses nothing."""
    for service in manifest.services:
        if not service.argv or service.argv[0] not in facts.missing_programs:
            continue
        what = f", which runs its image {service.container}," if service.container else ""
        field = "runtime.container_engine" if service.container else f"services.{service.name}.command"
        remedy = (
            "install podman, or choose docker" if service.container else "install it, or put your own command there"
        )
        yield Finding(
            code="host/service-program-missing",
            severity="error" if service.fatal else "warning",
            key=field,
            message=f"{service.name}: {service.argv[0]}{what} {facts.missing_programs[service.argv[0]]}",
            notes=(remedy, f"without the service: ~services.{service.name}"),
        )


def _images_found(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """A container whose image must be fetched first: its engine does that at the start, which then takes longer."""
    for service in manifest.services:
        if service.container is not None and service.argv and service.container in facts.missing_images:
            pull = f"{service.argv[0]} pull {service.container}"
            yield Finding(
                code="host/image-missing",
                severity="warning",
                key=f"services.{service.name}.container.image",
                message=f"{service.name}: {service.argv[0]} does not have the image {service.container} here",
                notes=(
                    f"{pull}; else its start fetches it, if it can within {service.start_timeout_s:g} s",
                    f"without the service: ~services.{service.name}",
                ),
            )


def _upstreams(_manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """An upstream that does not answer, or not as one does: the fleet runs without it."""
    for name, wrong in facts.unwell_upstreams.items():
        yield Finding(
            code="host/upstream-unwell",
            severity="warning",
            key=f"upstreams.{name}",
            message=f"{name} {wrong}",
            notes=("who asks for its models gets an error, or their fallback, until it does",),
        )


def _ram(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """What the HOT set commits against what is available now; our own running servers count once."""
    boot = _boot_set(manifest)
    committed = sum(m.committed_bytes for s in boot for m in s.memory if m.device == "ram")
    committed += sum(s.ram_bytes for s in manifest.services if s.start == "boot")
    filed = _file_bytes(boot)
    room = facts.host.available_bytes + facts.our_bytes
    if committed > room:
        biggest = sorted(boot, key=lambda s: -sum(m.committed_bytes + m.file_bytes for m in s.memory))[:3]
        yield Finding(
            code="host/ram-short",
            severity="error",
            key="hardware.ram_bytes",
            message=(
                f"{gib(committed + filed - room)} of RAM are missing: the fleet needs {gib(committed + filed)} "
                f"({gib(committed)} committed, {gib(filed)} of model files) and {gib(room)} are available now"
            ),
            notes=tuple(
                f"{s.name} needs {gib(sum(m.committed_bytes + m.file_bytes for m in s.memory))}" for s in biggest
            ),
        )
    elif committed + filed > room:
        yield Finding(
            code="host/ram-tight",
            severity="warning",
            key="hardware.ram_bytes",
            message=(
                f"model files will not all stay in memory: {gib(committed)} committed and {gib(filed)} of files, "
                f"{gib(room)} available now"
            ),
            notes=("pages are read again from disk when they are needed: slow, not fatal",),
        )


def _boot_set(manifest: FleetManifest) -> list[ServerUnit]:
    """Servers that run after start: of an exclusive group, only the default member."""
    return [s for s in manifest.servers if s.start == "boot" and (s.exclusive is None or s.default)]


def _file_bytes(servers: list[ServerUnit]) -> int:
    """File-backed RAM of `servers`; the manifest already counts shared files once."""
    return sum(m.file_bytes for s in servers for m in s.memory if m.device == "ram")


def _vram(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Planned GPU memory against what is free on the card of that name."""
    cards = {g.name: g for g in facts.host.gpus}
    for device in manifest.devices:
        if device.kind != "gpu":
            continue
        need = sum(m.committed_bytes for s in _boot_set(manifest) for m in s.memory if m.device == device.name)
        card = cards.get(device.name)
        if card is None:
            if need and device.name not in facts.unseen_gpus:
                yield Finding(
                    code="host/gpu-missing",
                    severity="error",
                    key=f"hardware.gpus.{device.name}",
                    message=f"no GPU {device.name} on this host; the fleet needs {gib(need)} on it",
                    notes=(f"this host has: {', '.join(cards) or 'no GPU'}",),
                    fixes=(Fix(override="hardware=auto", effect="plans for the devices of this host"),),
                )
        elif need > card.free_bytes and facts.our_bytes == 0:
            yield Finding(
                code="host/vram-short",
                severity="error",
                key=f"hardware.gpus.{device.name}.vram_bytes",
                message=f"{device.name}: {gib(need)} needed, {gib(card.free_bytes)} of {gib(card.vram_bytes)} free now",
            )


def _memlock(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Locked bytes of each process against RLIMIT_MEMLOCK."""
    limit = facts.host.memlock_bytes
    if limit is None:
        return
    for server in manifest.servers:
        locked = sum(m.locked_bytes for m in server.memory)
        if locked > limit:
            yield Finding(
                code="host/memlock",
                severity="error",
                key=f"servers.{server.name}.load_mode",
                message=f"{server.name} locks {gib(locked)} but RLIMIT_MEMLOCK is {gib(limit)}: it would not lock",
                notes=("ulimit -l unlimited; under systemd LimitMEMLOCK=infinity (rendered units have it)",),
                fixes=(Fix(override=f"servers.{server.name}.load_mode=mmap", effect="does not lock"),),
            )


def _ports(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Ports, and paths of unix sockets, that somebody else holds."""
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
        yield Finding(
            code="host/port-taken",
            severity="error",
            key=key,
            message=f"{name}: {number} {why}",
            notes=(
                f"nothing that launch did not start is stopped; stop it, or choose another port: {override}={other}",
            ),
        )


def _taken_path(server: str, path: str, why: str) -> Finding:
    """A unix socket that cannot be had."""
    key = f"servers.{server}.host"
    notes = [f"nothing that launch did not start is stopped or removed; another path, or a port: {key}=127.0.0.1"]
    if "cannot be bound" in why:
        notes.append("rendered units make a folder of their own below /run")
    return Finding(
        code="host/port-taken", severity="error", key=key, message=f"{server}: {path} {why}", notes=tuple(notes)
    )


def _other_port(taken: int, planned: set[int]) -> int:
    """A port like `taken` that the plan does not use; whether somebody else does is seen when it is tried."""
    others = (port for port in range(taken + 100, taken + 1000) if port < 65536 and port not in planned)
    return next(others, 18800)


def _cpus(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """CPU sets and NUMA nodes of the plan that this host does not have."""
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
        message = f"{_all(names)} on CPUs {cpus}, and this host gives us {facts.host.cpus}"
        yield _elsewhere("host/cpus-missing", names, "cpus", message, "leaves it to the scheduler")
    for strange, names in on_nodes.items():
        message = f"{_all(names)} with memory of NUMA node {strange}; this host has {', '.join(sorted(nodes))}"
        yield _elsewhere("host/nodes-missing", names, "numa", message, "leaves its memory to the kernel")


def _all(names: list[str]) -> str:
    """Several servers that one thing is wrong with."""
    return f"{', '.join(names)} run{'s' * (len(names) == 1)}"


def _elsewhere(code: str, names: list[str], field: str, message: str, effect: str) -> Finding:
    """What `names` are bound to is not on this host; one of them can be freed by an override, several by one each."""
    override = f"servers.{names[0]}.{field}=null"
    alone = len(names) == 1
    return Finding(
        code=code,
        severity="error",
        key=f"servers.{names[0]}.{field}",
        message=message,
        fixes=(Fix(override=override, effect=effect),) if alone else (),
        notes=() if alone else (f"{override}, and so for each of them, {effect}",),
    )


def _quota(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Threads of each server against the CPU time that the cgroup of this process is given."""
    quota = facts.host.cpu_quota
    if quota is None:
        return
    whole = max(1, int(quota))
    for server in manifest.servers:
        threads = _threads(server)
        if server.start != "never" and threads > quota:
            yield Finding(
                code="host/cpu-quota",
                severity="warning",
                key=f"servers.{server.name}.threads",
                message=(
                    f"{server.name} has {threads} threads, but the cgroup here is given {quota:g} CPUs' time: "
                    "all of them wait whenever it is used up"
                ),
                fixes=(Fix(override=f"servers.{server.name}.threads={whole}", effect="as many as are given"),),
            )


def _threads(server: ServerUnit) -> int:
    """`--threads` of a command line; 0 where it has none."""
    argv = server.argv
    value = argv[argv.index("--threads") + 1] if "--threads" in argv[:-1] else ""
    return int(value) if value.isdecimal() else 0


def _pinned(argv: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The CPU list and the NUMA nodes that a command line's prefix names; empty where it names none."""
    wrapper = Path(argv[0]).name
    if wrapper == "taskset":
        return argv[argv.index("--cpu-list") + 1], ()
    if wrapper != "numactl":
        return "", ()
    options = dict(word.partition("=")[::2] for word in argv[1 : argv.index("--")])
    named = next((options[o] for o in ("--membind", "--preferred", "--interleave") if o in options), "all")
    return options.get("--physcpubind", ""), () if named == "all" else tuple(named.split(","))


def _disk(_manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Room for state and logs."""
    for path, free in facts.disk_free.items():
        if free < LOG_ROOM_BYTES:
            yield Finding(
                code="host/disk-short",
                severity="warning",
                key="runtime.state_dir",
                message=f"{gib(free)} free for state and logs in {path}",
                notes=("runtime.state_dir=DIR puts them elsewhere",),
            )


def _models_to_come(_manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """Room for the model files that the config names and that are not here yet."""
    for folder, need in facts.models_to_come.items():
        free = facts.models_free[folder]
        if need > free:
            yield Finding(
                code="host/models-no-room",
                severity="warning",
                key="hardware.model_dir",
                message=f"{gib(need)} of model files are not here yet, and {gib(free)} are free in {folder}",
                notes=("all quantizations that the config names of the fleet's models; `launch pull` brings them",),
            )


CHECKS: tuple[HostCheck, ...] = (
    *(_ram, _vram, _files, _programs_found, _services_found, _images_found),
    *(_memlock, _ports, _cpus, _quota, _disk, _models_to_come, _upstreams),
)
