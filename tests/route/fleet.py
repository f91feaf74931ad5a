"""Parts for the route tests: routing tables, scripted upstreams, a front on a real socket, raw clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from launcher.ir.fleet import BreakerUnit, FrontUnit, RouteTarget, RoutingTable
from launcher.ir.live import Lease, ServerState, UnavailableError, Upstreams
from launcher.route import Front, StaticUpstreams, bind, serve
from launcher.route.target import SERVING
from launcher.supervise.control import SOCKET_NAME, control_socket, serve_control

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + b'{"ok":true}'
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WAIT_S = 60.0
"""What a test waits for something that must happen before it counts as hanging."""


def target(name: str, port: int, **changes: Any) -> RouteTarget:
    """A routing table's entry for a server on loopback."""
    fields: dict[str, Any] = {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "slots": 2,
        "n_ctx_per_slot": 512,
        "model": f"{name}-file",
        "roles": (),
        "aliases": (),
        "start": "boot",
        "exclusive": None,
        "request_timeout_s": 60.0,
        "request_defaults": {},
        "embedding": False,
        "modalities": ("text",),
    }
    return RouteTarget(**(fields | changes))


def front_unit(**changes: Any) -> FrontUnit:
    """Limits of a front on loopback."""
    fields: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "api_key_file": None,
        "max_body_bytes": 1 << 20,
        "max_header_bytes": 16 * 1024,
        "header_timeout_s": 60.0,
        "idle_timeout_s": 60.0,
        "connect_timeout_s": 30.0,
        "queue_size": 16,
        "queue_timeout_s": 10.0,
        "allowed_hosts": (),
        "access_log": False,
    }
    return FrontUnit(**(fields | changes))


def table(*targets: RouteTarget, front: FrontUnit | None = None, **changes: Any) -> RoutingTable:
    """A routing table in which every server answers to its name, roles and aliases; the first is the default."""
    names: dict[str, tuple[str, ...]] = {}
    for unit in targets:
        for name in dict.fromkeys((unit.name, *unit.roles, *unit.aliases)):
            names[name] = (*names.get(name, ()), unit.name)
    fields: dict[str, Any] = {
        "deployment": "test",
        "front": front or front_unit(),
        "targets": {t.name: t for t in targets},
        "names": names,
        "default": targets[0].name if targets else None,
        "pools": (),
        "fallback": {},
        "escalation": {},
        "max_retries": 2,
        "max_escalations": 2,
        "breaker": BreakerUnit(failures=3, open_s=30, open_max_s=300),
        "timeouts_s": {},
    }
    return RoutingTable(**(fields | changes))


class FakeFleet(StaticUpstreams):
    """Upstreams whose states a test sets; waking one runs `on_wake`, which must make it ready or raise."""

    def __init__(self, **states: ServerState) -> None:
        """Servers that are not named are ready."""
        self.in_flight: defaultdict[str, int] = defaultdict(int)
        self.states: dict[str, ServerState] = dict(states)
        self.woken: list[str] = []
        self.left: list[tuple[str, bool]] = []
        self.addresses: dict[str, tuple[str, int]] = {}
        """Where a process listens, if not where the routes say."""
        self.on_wake: Callable[[str], Awaitable[None]] | None = None

    def state(self, name: str) -> ServerState:
        """As the test set it."""
        return self.states.get(name, "ready")

    def try_lease(self, name: str) -> Lease | None:
        """Granted while the test has it serve; its release is noted."""
        if self.state(name) not in SERVING:
            return None
        self.in_flight[name] += 1

        def end(ok: bool) -> None:
            self.in_flight[name] -= 1
            self.left.append((name, ok))

        return Lease(name, end, address=self.addresses.get(name))

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """Note the call and do what the test says."""
        self.woken.append(name)
        if self.on_wake is not None:
            await self.on_wake(name)
        else:
            self.states[name] = "ready"
        lease = self.try_lease(name)
        if lease is None:
            raise UnavailableError("start_timeout", f"server {name!r} was not ready in time")
        return lease


class Upstream:
    """A scripted server: each connection is handed to `script`. Requests read with `read_request` are kept."""

    def __init__(self, script: Script, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Starts with `async with`, on a free port unless one is given."""
        self._script = script
        self._tls = tls
        self.port = port
        self.connections = 0
        self.requests: list[Seen] = []
        self.closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and end the scripts."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deafen(self) -> None:
        """Listen no more."""
        self._server.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run the script on a new connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._script(reader, writer)
        finally:
            self._tasks.discard(task)
            self.closed.set()
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> Seen:
        """Read one request."""
        seen = await read_request(reader)
        self.requests.append(seen)
        return seen


class Seen:
    """A request as an upstream got it."""

    def __init__(self, line: str, headers: list[tuple[str, str]], body: bytes) -> None:
        """Headers in order, names lowered."""
        self.line = line
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((v for n, v in self.headers if n == name), None)


async def read_request(reader: asyncio.StreamReader) -> Seen:
    """Read one request with a content-length body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in head[1:] if line)]
    length = int(next((v for n, v in headers if n == "content-length"), "0"))
    return Seen(head[0], headers, await reader.readexactly(length))


def answering(*answers: bytes, tls: ssl.SSLContext | None = None) -> Upstream:
    """An upstream that gives each request the next answer, the last one for ever, on kept-alive connections."""
    left = list(answers)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer in turn."""
        while True:
            await upstream.read(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    upstream = Upstream(script, tls=tls)
    return upstream


@contextlib.asynccontextmanager
async def running(front: Front, *, drain_timeout_s: float = 0.2) -> AsyncIterator[int]:
    """The front on a free port, served as the runtime does; yields the port. Nothing is in flight afterwards."""
    if type(front.upstreams) is StaticUpstreams:
        front.upstreams = FakeFleet()  # the same, and counts
    sock = bind(front, "127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    shutdown = asyncio.Event()
    serving = serve(front, host="127.0.0.1", port=port, sock=sock, shutdown=shutdown, drain_timeout_s=drain_timeout_s)
    task = asyncio.create_task(serving)
    try:
        yield port
    finally:
        shutdown.set()
        await asyncio.wait_for(task, WAIT_S)
        view = front.view
        assert front.clients.connections == set()
        assert {n: t.gate.in_flight for n, t in view.targets.items() if t.gate.in_flight} == {}
        upstreams: Upstreams = front.upstreams
        if isinstance(upstreams, FakeFleet):
            assert set(upstreams.in_flight.values()) <= {0}


@contextlib.asynccontextmanager
async def controlled(app: Any, directory: Path) -> AsyncIterator[Path]:
    """`app` as a runtime's control API; the path of its socket in `directory`."""
    with control_socket(directory) as sock:
        async with serve_control(app, sock):
            yield directory / SOCKET_NAME


def post(body: bytes | dict[str, Any], path: str = "/v1/chat/completions", *headers: str) -> bytes:
    """A POST as bytes, with Host and Content-Length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


def get(path: str, *headers: str, host: str = "localhost", method: str = "GET") -> bytes:
    """A request without a body, as bytes."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


class Answer:
    """A response as a raw client got it. `clean` is whether it ended as its framing says."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, clean: bool) -> None:
        """Header names lowered."""
        self.status = status
        self.headers = headers
        self.body = body
        self.clean = clean

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code of an error."""
        code: str = self.json()["error"]["code"]
        return code


class RawClient:
    """A client that sends exactly the bytes it is given."""

    def __init__(self, port: int) -> None:
        """Connects with `async with`."""
        self.port = port

    async def __aenter__(self) -> Self:
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    async def ask(self, data: bytes) -> Answer:
        """Send a request and read its response."""
        self.send(data)
        return await self.answer(head_only=data.startswith(b"HEAD "))

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read one response, following its framing."""
        async with asyncio.timeout(WAIT_S):
            status, headers = await self.head()
            if head_only or status in (204, 304):
                return Answer(status, headers, b"", clean=True)
            parts: list[bytes] = []
            try:
                if headers.get("transfer-encoding") == "chunked":
                    while part := await self.chunk():
                        parts.append(part)
                else:
                    parts.append(await self.reader.readexactly(int(headers["content-length"])))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                partial = error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
                return Answer(status, headers, b"".join(parts) + partial, clean=False)
            return Answer(status, headers, b"".join(parts), clean=True)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read status and headers."""
        async with asyncio.timeout(WAIT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}
        return int(lines[0].split()[1]), headers

    async def chunk(self) -> bytes:
        """Read one chunk; b"" is the last."""
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bool:
        """Whether the front closes the connection, saying nothing more."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


async def ask(port: int, data: bytes) -> Answer:
    """One request on its own connection."""
    async with RawClient(port) as client:
        return await client.ask(data)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # the code under test has no event to wait for
            await asyncio.sleep(0.005)


def chunked(*parts: bytes) -> bytes:
    """Chunks, without the last one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)
