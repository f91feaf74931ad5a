"""The plan against this host, now: files, memory, locks, ports, tools. Facts are gathered first, then judged."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from launcher.cpulist import parse_cpulist
from launcher.errors import Finding, Fix
from launcher.ir.fleet import FleetManifest, RoutingTable, ServerUnit
from launcher.ir.host import HostInventory
from launcher.sizes import GIB, gib


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found on this host about one manifest. `our_bytes` is RAM that its running servers already hold."""

    host: HostInventory
    missing_files: dict[str, str] = {}
    """Path → why it cannot be read."""
    missing_programs: tuple[str, ...] = ()
    taken_ports: dict[str, str] = {}
    """Server, service or `front` → who holds its port."""
    our_bytes: int = 0
    disk_free: dict[str, int] = {}


LOG_ROOM_BYTES = 1 * GIB
_FILES_SHOWN = 3
_ANOTHER = "another process"
_HOLDERS = ("pid ", _ANOTHER)


def gather_facts(
    manifest: FleetManifest, routes: RoutingTable, host: HostInventory, *, running: dict[str, int], state_dir: Path
) -> HostFacts:
    """Looks at every file, program and port that `manifest` needs.

    `running` maps servers of this fleet that already run to the bytes they hold: their ports are not taken by
    strangers, and their memory is counted once.
    """
    started = [s for s in manifest.servers if s.start != "never"]
    missing = {p: why for s in started for p in s.files if (why := _unreadable(p)) is not None}
    programs = {a for s in started if s.name not in running for a in _programs(s)}
    ports: dict[str, str] = {}
    wanted = [(s.name, s.host, s.port) for s in started]
    wanted += [(s.name, s.host, s.port) for s in manifest.services if s.builtin is None]
    wanted.append(("front", routes.front.host, routes.front.port))
    for name, address, port in wanted:
        if name not in running and (owner := port_owner(address, port)) is not None:
            ports[name] = owner
    return HostFacts(
        host=host,
        missing_files=missing,
        missing_programs=tuple(sorted(p for p in programs if shutil.which(p) is None)),
        taken_ports=ports,
        our_bytes=sum(running.values()),
        disk_free={str(state_dir): _disk_free(state_dir)},
    )


def _programs(server: ServerUnit) -> tuple[str, ...]:
    """The programs that `server.argv` runs: the binary, behind numactl or taskset where those wrap it."""
    wrapper = Path(server.argv[0]).name
    if wrapper == "numactl" and "--" in server.argv:
        return server.argv[0], server.argv[server.argv.index("--") + 1]
    if wrapper == "taskset":
        return server.argv[0], server.argv[3]
    return (server.argv[0],)


def _unreadable(path: str) -> str | None:
    """Why `path` cannot be read, None when it can."""
    try:
        with Path(path).open("rb") as file:
            file.read(4)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _disk_free(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def port_owner(host: str, port: int) -> str | None:
    """Who listens on `host:port`: `pid 123 (name)`, `another process`, or why we may not bind; None when free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as llama-server and uvicorn bind: TIME_WAIT does not count as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return error.strerror or str(error)
        else:
            return None
    return _listener(port) or _ANOTHER


def _listener(port: int) -> str | None:
    """The process that listens on `port`, where we may know it."""
    import psutil  # noqa: PLC0415 - only when a port is taken

    try:
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
                if connection.pid is None:
                    return None
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return None
    return None


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
    """A binary or numactl that is not installed."""
    for program in facts.missing_programs:
        users = [s.name for s in manifest.servers if program in tuple(_programs(s))]
        if Path(program).name == "numactl":
            code, remedy = "host/numactl-missing", "apt-get install numactl, or drop the servers' numa policy"
        else:
            code, remedy = "engine/missing-binary", "engines.default.binary=/path/to/llama-server, or engine=embedded"
        yield Finding(
            code=code,
            severity="error",
            key="engines.default.binary",
            message=f"{program} is not on this host; {len(users)} servers run it",
            notes=(remedy,),
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
            if need:
                yield Finding(
                    code="host/gpu-missing",
                    severity="error",
                    key=f"hardware.gpus.{device.name}",
                    message=f"no GPU {device.name} on this host; the fleet needs {gib(need)} on it",
                    notes=(f"this host has: {', '.join(cards) or 'no GPU that NVML shows'}",),
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
    """Ports that somebody else holds."""
    ports = {s.name: s.port for s in manifest.servers} | {s.name: s.port for s in manifest.services}
    for name, owner in facts.taken_ports.items():
        key = "runtime.front.port" if name == "front" else f"ports.{name}"
        number = f"port {ports[name]}" if name in ports else "the front's port"
        yield Finding(
            code="host/port-taken",
            severity="error",
            key=key,
            message=f"{name}: {number} {'is held by' if owner.startswith(_HOLDERS) else 'cannot be bound:'} {owner}",
            notes=("nothing that launch did not start is stopped; stop it, or choose another port",),
        )


def _cpus(manifest: FleetManifest, facts: HostFacts) -> Iterator[Finding]:
    """CPU sets and NUMA nodes of the plan that this host does not have."""
    ours = parse_cpulist(facts.host.cpus)
    nodes = {str(n.id) for n in facts.host.nodes} or {"0"}
    for server in manifest.servers:
        cpus, wanted_nodes = _pinned(server.argv)
        if cpus and not parse_cpulist(cpus) <= ours:
            yield Finding(
                code="host/cpus-missing",
                severity="error",
                key=f"servers.{server.name}.cpus",
                message=f"{server.name} runs on CPUs that this host does not give us: it has {facts.host.cpus}",
            )
        if strange := ", ".join(n for n in wanted_nodes if n not in nodes):
            yield Finding(
                code="host/nodes-missing",
                severity="error",
                key=f"servers.{server.name}.numa",
                message=f"{server.name} wants memory of NUMA node {strange}; this host has {', '.join(sorted(nodes))}",
            )


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
                fixes=(Fix(override="runtime.state_dir=DIR", effect="puts them elsewhere"),),
            )


CHECKS: tuple[HostCheck, ...] = (_ram, _vram, _files, _programs_found, _memlock, _ports, _cpus, _disk)
