"""The front's listeners: opened once, moved by a reload without losing a request. I/O: sockets, certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from launcher.base.regular import read_regular
from launcher.errors import HostError
from launcher.ir.fleet import FrontUnit
from launcher.route.clients import Clients
from launcher.route.connection import ClientConnection
from launcher.route.front import Front
from launcher.route.guard import require_key_for_public
from launcher.route.handshake import TlsServer, begin_tls
from launcher.route.sockets import raise_descriptors, with_little_unsent, without_pacing

BACKLOG = 2048
Server = asyncio.Server | TlsServer


class PreparedListener(msgspec.Struct, frozen=True):
    """A door that is ready to be opened: the socket of `host` and `port`, and those beside it; none: all stay."""

    unit: FrontUnit
    socks: tuple[socket.socket, ...]
    context: ssl.SSLContext | None

    def close(self) -> None:
        """Discard it unopened."""
        for sock in self.socks:
            sock.close()


class Listeners:
    """The listening sockets of one front, and the connections of the present and of earlier ones.

    A reload moves the socket of `host` and `port`; those beside it (`listen`) stay.
    """

    def __init__(self, front: Front, sock: socket.socket, beside: Sequence[socket.socket] = ()) -> None:
        """`sock` and those `beside` it are bound, and closed by `close`.

        Raises HostError for a certificate that cannot be used.
        """
        self._front = front
        self._unit = front.unit
        self._sock = sock
        self._beside = list(beside)
        self._side_servers: list[Server] = []
        self._context = tls_context(front.unit)
        self.drain_timeout_s: float | None = None
        """Set by a reload; None: the limit given to `serve`."""
        self._server: Server | None = None
        self._retired: list[Clients] = []
        """Connections of closed listeners; they end when their requests are answered."""

    async def open(self) -> None:
        """Accept connections."""
        clients = self._front.clients
        self._server = await _server(self._sock, lambda: clients, self._context)
        # a unix socket has no TLS, because nothing leaves the machine
        contexts = (None if sock.family == socket.AF_UNIX else self._context for sock in self._beside)
        sides = zip(self._beside, contexts, strict=True)
        self._side_servers = [await _server(sock, lambda: self._front.clients, context) for sock, context in sides]

    def prepare(self, unit: FrontUnit) -> PreparedListener:
        """Do everything for `unit` that can fail; open sockets stay as they are. Raises HostError, ConfigError."""
        context = tls_context(unit)
        was = self._unit
        if unit.listen != was.listen:
            message = "the front's other addresses and sockets change with a new start of the runtime only"
            raise HostError.of("route/cannot-listen", message, key="runtime.front.listen")
        require_key_for_public(unit.host, unit.api_key_file)
        if (unit.host, unit.port) != (was.host, was.port):
            sock = listening_socket(unit, beside=self._sock)
        elif (unit.tls_cert_file, unit.tls_key_file) != (was.tls_cert_file, was.tls_key_file):
            sock = self._sock.dup()
        else:
            return PreparedListener(unit, (), context)
        return PreparedListener(unit, (sock, *(each.dup() for each in self._beside)), context)

    async def take(self, door: PreparedListener) -> None:
        """Listen on `door` alone. Connections to the old address or certificate are closed once answered."""
        unit = self._unit = door.unit
        raise_descriptors(unit.max_connections)
        if not door.socks:
            if self._context is not None:
                _load_chain(self._context, unit)  # it may have been renewed
            return
        old_socks, old_context = (self._sock, *self._beside), self._context
        old_servers = (self._server, *self._side_servers)
        old = self._front.fresh_clients()
        (self._sock, *self._beside), self._context = door.socks, door.context
        await self.open()
        if self._sock.getsockname() != old_socks[0].getsockname():
            await self._accept_backlog(old_socks[0], old, old_context)
        for server in old_servers:
            if server is not None:
                server.close()
        for sock in old_socks:
            sock.close()
        old.stop()
        self._retired = [clients for clients in (*self._retired, old) if clients.connections]

    def close(self) -> None:
        """Accept no more connections."""
        for sock in self._beside:
            unlink_path(sock)
        for server in (self._server, *self._side_servers):
            if server is not None:
                server.close()
        for sock in (self._sock, *self._beside):
            sock.close()

    @property
    def clients(self) -> tuple[Clients, ...]:
        """Connections of the present listener, and of earlier ones."""
        return (self._front.clients, *self._retired)

    @staticmethod
    async def _accept_backlog(sock: socket.socket, clients: Clients, context: ssl.SSLContext | None) -> None:
        """Accept connections that wait at the old address: closing it would reset them."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # nobody waits any more
            while True:
                found, _ = sock.accept()
                if context is None:
                    await loop.connect_accepted_socket(lambda: ClientConnection(clients), found)
                else:
                    begin_tls(found, clients, context)


async def _server(sock: socket.socket, clients: Callable[[], Clients], context: ssl.SSLContext | None) -> Server:
    """Accept connections on `sock`; `clients` returns the set that the next one belongs to."""
    without_pacing(sock)
    if context is not None:
        sock.listen(BACKLOG)
        return TlsServer(sock, clients, context)
    return await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(clients()), sock=sock, backlog=BACKLOG
    )


def _load_chain(context: ssl.SSLContext, unit: FrontUnit) -> None:
    """Raises OSError, ValueError."""

    def no_passphrase() -> str:  # OpenSSL would ask for it at the terminal, and wait
        raise ValueError("the key has a passphrase")

    context.load_cert_chain(str(unit.tls_cert_file), unit.tls_key_file, no_passphrase)


def tls_context(unit: FrontUnit) -> ssl.SSLContext | None:
    """The TLS settings of the routing table; None: no TLS. Raises HostError."""
    if unit.tls_cert_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        for name in (unit.tls_cert_file, unit.tls_key_file or unit.tls_cert_file):
            read_regular(Path(name))  # OpenSSL would wait for whoever writes into a pipe
        _load_chain(context, unit)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        message = f"TLS cannot be had from {unit.tls_cert_file} and {unit.tls_key_file}: {error}"
        raise HostError.of("route/tls-unusable", message, key="runtime.front.tls_cert_file") from None
    return context


def listening_socket(unit: FrontUnit, *, beside: socket.socket | None = None) -> socket.socket:
    """A listening socket for `unit`. Raises HostError if the address is not available, ConfigError without a key.

    `::` takes both families, where the kernel supports that; a host that is a path is a unix socket. `beside` is ours
    and may listen on the same port: 127.0.0.1 and 0.0.0.0 are then open together for a moment.
    """
    host, port = unit.host, unit.port
    require_key_for_public(host, unit.api_key_file)
    path, address = host.startswith("/"), host.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    both = address == "::" and socket.has_dualstack_ipv6()
    shared = beside is not None and beside.family in (socket.AF_INET, socket.AF_INET6)
    try:
        if path:
            return _bind_path(Path(host))
        if beside is not None and shared:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock = socket.create_server(
            (address, port), family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=both
        )
        with_little_unsent(sock)  # now, since it listens already
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)  # nobody else gets in beside us
    except (OSError, UnicodeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        message = f"the front cannot listen on {host if path else f'{host}:{port}'}: {reason}"
        key = "runtime.front.listen" if host in unit.listen else "runtime.front.port"
        raise HostError.of("route/cannot-listen", message, key=key) from None
    finally:
        if beside is not None and shared:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    return sock


def _bind_path(path: Path) -> socket.socket:
    """A unix socket at `path`, open to every user who can reach its folder; one left by a dead process is replaced."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # one that lives may accept nothing now
            with contextlib.suppress(BlockingIOError):
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def unlink_path(sock: socket.socket) -> None:
    """Take a unix socket's path away before it is closed; of one that is closed somebody else may have it."""
    if sock.family == socket.AF_UNIX and sock.fileno() >= 0:
        Path(sock.getsockname()).unlink(missing_ok=True)
