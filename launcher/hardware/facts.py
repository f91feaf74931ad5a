"""Facts about this host for a manifest: looked up, not judged. I/O: files, ports, disks."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from launcher.base import unix_socket
from launcher.base.addresses import is_path
from launcher.base.programs import why_not_runnable
from launcher.hardware.upstreams import unwell_upstreams
from launcher.ir.catalog import StoredFile
from launcher.ir.fleet import FleetManifest, RoutingTable, ServerUnit
from launcher.ir.host import HostInventory


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about this host for one manifest. `our_bytes`: RAM that its running servers already hold."""

    host: HostInventory
    missing_files: dict[str, str] = {}
    """Path → why it cannot be read."""
    missing_programs: dict[str, str] = {}
    """Program → why it cannot be run, worded to follow its name."""
    missing_images: tuple[str, ...] = ()
    """Container images that are missing, while their engine is installed."""
    taken_ports: dict[str, str] = {}
    """Server, service or `front` → why it cannot listen on its port or path: `is held by …`, `cannot be bound: …`."""
    our_bytes: int = 0
    disk_free: dict[str, int] = {}
    models_to_come: dict[str, int] = {}
    """Directory → bytes of model files in the config that are not there yet, those on one disk added up."""
    models_free: dict[str, int] = {}
    """Each directory of `models_to_come` → free bytes of its disk."""
    unwell_upstreams: dict[str, str] = {}
    """Upstream → what is wrong with it, as seen from this host."""
    unseen_gpus: tuple[str, ...] = ()
    """GPUs that cannot be listed here: of a backend without a driver module, and without a binary to ask."""


Owner = Callable[[int, str], object | None]
"""Names the process that listens on a port of an address; None: none."""
_IMAGE_S = 10.0
_NO_IMAGE = re.compile(rb"no such image|image not known|no such object", re.IGNORECASE)
"""Messages of docker and podman for a missing image; any other failure says nothing about the image."""


def _nobody(_port: int, _host: str) -> None:
    return None


def gather_facts(
    manifest: FleetManifest,
    routes: RoutingTable,
    host: HostInventory,
    *,
    running: dict[str, int],
    state_dir: Path,
    owner: Owner = _nobody,
) -> HostFacts:
    """Looks up every file, program and port that `manifest` needs.

    `running`: bytes held by servers of this fleet that already run, by name. Their ports do not count as taken, neither
    for them nor for those that take turns with them, and their memory is counted once.
    """
    servers = [s for s in manifest.servers if s.start != "never"]
    commands = [s for s in manifest.services if s.argv and s.start != "never"]
    programs = {a for s in servers if s.name not in running for a in programs_of(s)}
    programs |= {s.argv[0] for s in commands if s.name not in running}
    images = {(s.argv[0], s.container) for s in commands if s.container}
    ours = {(s.exclusive, s.host, s.port) for s in servers if s.name in running and s.exclusive}
    wanted = [(s.name, s.host, s.port) for s in servers if (s.exclusive, s.host, s.port) not in ours]
    wanted += [(s.name, s.host, s.port) for s in manifest.services if s.builtin is None]
    also = (host for host in routes.front.listen if not host.startswith("/"))
    wanted += [("front", host, routes.front.port) for host in (routes.front.host, *also)]
    taken = ((name, address_taken(address, port, owner)) for name, address, port in wanted if name not in running)
    return HostFacts(
        host=host,
        missing_files={p: why for s in servers for p in s.files if (why := _unreadable(p)) is not None},
        missing_programs={p: why for p in sorted(programs) if (why := why_not_runnable(p)) is not None},
        missing_images=tuple(sorted(i for e, i in images if why_not_runnable(e) is None and not _has_image(e, i))),
        taken_ports={name: why for name, why in taken if why is not None},
        our_bytes=sum(running.values()),
        disk_free={str(state_dir): _disk_free(state_dir)},
        unwell_upstreams=unwell_upstreams(routes),
    )


def _has_image(engine: str, image: str) -> bool:
    """Whether the container engine has `image`; True where that is unknown."""
    try:
        done = subprocess.run(
            [engine, "image", "inspect", image],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_IMAGE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return done.returncode == 0 or _NO_IMAGE.search(done.stderr) is None


def programs_of(server: ServerUnit) -> tuple[str, ...]:
    """The programs that `server.argv` runs: the binary, behind numactl or taskset where those wrap it."""
    wrapper = Path(server.argv[0]).name
    if wrapper == "numactl" and "--" in server.argv:
        return server.argv[0], server.argv[server.argv.index("--") + 1]
    if wrapper == "taskset":
        return server.argv[0], server.argv[3]
    return (server.argv[0],)


def _unreadable(path: str) -> str | None:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            file.read(4)
            return "it is a pipe" if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) else None
    except OSError as error:
        return error.strerror or str(error)


def _open_at_once(path: str, flags: int) -> int:
    """A pipe in the place of a file is not waited for. Raises OSError."""
    return os.open(path, flags | os.O_NONBLOCK)


def _disk_free(path: Path) -> int:
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """`path`, or the first directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def missing_models(files: Iterable[StoredFile]) -> tuple[dict[str, int], dict[str, int]]:
    """Model files that are not here yet: bytes per disk, named by the directory with most of them; free bytes."""
    disks: dict[int, Counter[str]] = {}
    for file in files:
        if not file.here:
            folder = Path(file.path).parent
            disks.setdefault(_nearest(folder).stat().st_dev, Counter())[str(folder)] += file.bytes
    named = {folders.most_common(1)[0][0]: folders.total() for folders in disks.values()}
    return named, {folder: _disk_free(Path(folder)) for folder in named}


def address_taken(host: str, port: int, owner: Owner = _nobody) -> str | None:
    """Why an address cannot be listened on now (see `port_taken`), or a unix socket's path; None: it can."""
    return _path_taken(host, owner) if is_path(host) else port_taken(host, port, owner)


def _path_taken(path: str, owner: Owner) -> str | None:
    """What prevents a unix socket at `path`: a listener, another file, or a folder that we may not write."""
    try:
        pid = unix_socket.listener(path)
    except unix_socket.NotASocketError:
        return "is there, and is no socket"
    if pid is not None:
        return f"is held by {owner(0, path) or 'another process'}"
    try:
        folder = _nearest(Path(path).parent)
    except PermissionError as error:
        return f"cannot be bound: {error.strerror or error}"
    if not folder.is_dir():
        return f"cannot be bound: {folder} is no folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"cannot be bound: {folder} is not ours to write into"


def port_taken(host: str, port: int, owner: Owner = _nobody) -> str | None:
    """`is held by llama-server (pid 123)`, or `cannot be bound: …` with the system's reason; None when free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as llama-server and uvicorn bind: TIME_WAIT does not count as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f"cannot be bound: {error.strerror or error}"
        else:
            return None
    return f"is held by {owner(port, host) or 'another process'}"
