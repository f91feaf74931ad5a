"""A cluster that is fake: an API server with the verbs that our front uses, a controller, and a kubelet of loopback.

What it does is what the API's own documentation says: list and watch from a `resourceVersion`, 410 for one that is too
old, 409 for a change of an older version, scales, and who is not named by a Role is refused. "Pods" are real processes
on ports of this machine. It keeps what must never be: two members of a group at once (`violations`).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import signal
import socket
import ssl
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Object = dict[str, Any]
What = int | Literal["drop", "garbage", "late", "silence"]
"""A fault: a status; the connection is closed; no JSON; it is done and not answered; nothing is done or answered."""
TOKEN = "first-token"
RULES: list[Object] = [
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get", "patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update"]},
]
NAMES = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired"}


class Cluster:
    """Everything of one namespace, `fleet`. `programs`: what a Deployment's container runs, by its name."""

    def __init__(
        self,
        programs: Mapping[str, Sequence[str]],
        *,
        groups: Mapping[str, str] | None = None,
        rules: list[Object] | None = None,
    ) -> None:
        """Nothing listens yet, and nothing runs. `groups`: which Deployments must never run at the same time."""
        self.programs = dict(programs)
        self.groups = dict(groups or {})
        self.rules = RULES if rules is None else rules
        self.tokens = {TOKEN}
        self.version = 1
        self.floor = 0
        self.scales = {name: {"replicas": 0, "version": 1} for name in programs}
        self.pods: dict[str, Object] = {}
        self.lease: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "front", "namespace": "fleet", "resourceVersion": "1"},
        }
        self.holders: list[str] = []
        self.faults: list[tuple[str, str, What]] = []
        self.asked: list[tuple[str, str]] = []
        self.latency_s = 0.0
        self.wait_reasons: dict[str, str] = {}
        """Deployments whose containers wait, and for what."""
        self.lost_nodes: set[str] = set()
        """Deployments whose pods are asked to end and do not: nobody hears of their node."""
        self.violations: list[str] = []
        self.runs: list[str] = []
        """Every start of a container, by its Deployment."""
        self.gone_as_event = True
        self._events: list[tuple[int, str, Object]] = []
        self._changed = asyncio.Event()
        self._cut_watches = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._connections: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        """Under any TLS: a client that is gone never answers the TLS end, nor the handshake."""
        self.port = 0

    # --- for tests ------------------------------------------------------------------------------------------

    async def open(self, tls: ssl.SSLContext | None = None, bound: socket.socket | None = None) -> None:
        """Listen on a port of loopback, or on the socket `bound`."""
        where: dict[str, Any] = {"host": "127.0.0.1", "port": 0} if bound is None else {"sock": bound}
        self._tls = tls
        self._server = await asyncio.start_server(self._client, **where)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End everything, processes too."""
        if self._server is not None:
            self._server.close()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _abort(self._connections)
        await asyncio.gather(*(p.wait() for p in self._processes.values()))

    def fail(self, method: str, part: str, *whats: What) -> None:
        """Have the next calls of `method` whose path has `part` go wrong, one after another."""
        self.faults += [(method, part, what) for what in whats]

    def end_watches(self, *, garbage: bool = False) -> None:
        """End every watch: as a server does it, or in the middle of a line."""
        self._garbage = garbage
        self._cut_watches.set()
        self._cut_watches = asyncio.Event()

    def forget_history(self) -> None:
        """As after a compaction: a watch from before is too old."""
        self.version += 1
        self.floor = self.version

    def scale(self, name: str, replicas: int) -> None:
        """As `kubectl scale`."""
        self.version += 1
        self.scales[name] = {"replicas": replicas, "version": self.version}
        self._reconcile(name)

    def kill(self, name: str) -> None:
        """SIGKILL to the container of `name`."""
        for uid, process in self._processes.items():
            is_its = uid in self.pods and self.pods[uid]["metadata"]["labels"]["component"] == name
            if is_its and process.returncode is None:
                process.kill()

    def evict(self, name: str, *, node_is_lost: bool = False) -> None:
        """Have its pods end; the Deployment makes another."""
        if node_is_lost:
            self.lost_nodes.add(name)
        for uid in self._of(name):
            self._delete(uid)
        self._reconcile(name)

    def found_node(self, name: str) -> None:
        """The node is heard of again: what should have ended ends."""
        self.lost_nodes.discard(name)
        for uid in self._of(name, ending=True):
            self._stop(uid)

    def running(self) -> set[str]:
        """Deployments of which a process lives."""
        alive = (uid for uid, process in self._processes.items() if process.returncode is None)
        return {self.pods[uid]["metadata"]["labels"]["component"] for uid in alive if uid in self.pods}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - of anything that a test looks at
                await asyncio.sleep(0.02)

    # --- controller and kubelet -----------------------------------------------------------------------------

    def _of(self, name: str, *, ending: bool = False) -> Iterator[str]:
        for uid, pod in tuple(self.pods.items()):
            meta = pod["metadata"]
            if meta["labels"]["component"] == name and ("deletionTimestamp" in meta) == ending:
                yield uid

    def _reconcile(self, name: str) -> None:
        """One pod, or none."""
        there = list(self._of(name))
        if self.scales[name]["replicas"] and not there:
            self._create(name)
        elif not self.scales[name]["replicas"]:
            for uid in there:
                self._delete(uid)

    def _create(self, name: str) -> None:
        uid = f"{name}-{self.version + 1}"
        pod: Object = {
            "metadata": {
                "name": uid,
                "uid": uid,
                "labels": {"app": "fleet", "component": name},
                "creationTimestamp": f"2026-01-01T00:00:00.{self.version:06d}Z",
            },
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
        }
        self._emit("ADDED", pod)
        self._later(self._run(name, uid))

    async def _run(self, name: str, uid: str) -> None:
        """As a kubelet: start the container, say so, say how it ended, start it no more (it backs off for long)."""
        if name in self.wait_reasons:
            self._state(uid, "Pending", {"waiting": {"reason": self.wait_reasons[name], "message": "so it is"}})
            return
        if "deletionTimestamp" in self.pods[uid]["metadata"]:
            return
        process = await asyncio.create_subprocess_exec(*self.programs[name], stdout=asyncio.subprocess.DEVNULL)
        self._processes[uid] = process
        self.runs.append(name)
        others = {n for n in self.running() - {name} if self.groups.get(n) == self.groups.get(name, name)}
        if others:
            self.violations.append(f"{name} was started while {', '.join(sorted(others))} ran")
        if uid in self.pods and "deletionTimestamp" not in self.pods[uid]["metadata"]:
            self._state(uid, "Running", {"running": {}})
        elif uid in self.pods:
            self._stop(uid)
        code = await process.wait()
        if uid in self.pods:
            if "deletionTimestamp" in self.pods[uid]["metadata"]:
                if name not in self.lost_nodes:
                    self._emit("DELETED", self.pods.pop(uid))
            else:
                ended = {"exitCode": code if code >= 0 else 128 - code, "reason": "Error"}
                waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
                self._state(uid, "Running", waits, last={"terminated": ended})

    def _state(self, uid: str, phase: str, state: Object, last: Object | None = None) -> None:
        pod = self.pods[uid]
        container = {"name": "llama-server", "restartCount": 0, "state": state, "lastState": last or {}}
        pod["status"] = {"phase": phase, "containerStatuses": [container]}
        self._emit("MODIFIED", pod)

    def _delete(self, uid: str) -> None:
        pod = self.pods[uid]
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self._emit("MODIFIED", pod)
        if pod["metadata"]["labels"]["component"] not in self.lost_nodes:
            self._stop(uid)

    def _stop(self, uid: str) -> None:
        process = self._processes.get(uid)
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
        elif uid in self.pods:
            self._emit("DELETED", self.pods.pop(uid))

    def _emit(self, kind: str, pod: Object) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        if kind != "DELETED":
            self.pods[pod["metadata"]["uid"]] = pod
        self._events.append((self.version, kind, copy.deepcopy(pod)))
        self._changed.set()
        self._changed = asyncio.Event()

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- API server -----------------------------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer.transport)
        try:
            if self._tls is not None:
                await writer.start_tls(self._tls)  # before anything is awaited: what was read until then is lost
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:  # noqa: C901
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        self.asked.append((method, url.path))
        fault = next((f for f in self.faults if f[0] == method and f[1] in unquote(target)), None)
        if fault is not None:
            self.faults.remove(fault)
        what = fault[2] if fault is not None else None
        if what == "drop":
            return False
        if what == "silence":
            await reader.read()  # until the client gives up
            return False
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
            if "timeout" in query and self.latency_s * 1000 > float(query["timeout"].removesuffix("ms")):
                return await self._answer(writer, 504, {"message": "timeout"})
        if isinstance(what, int):
            return await self._answer(writer, what, {"message": f"as the test asked for: {what}"})
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return await self._answer(writer, 401, {"message": "no such token"})
        if query.get("watch"):
            if not self._allows("", "pods", "watch"):
                return await self._answer(writer, 403, {"message": "may not watch"})
            return await self._watch(writer, query)
        status, found = self._done(method, url.path, query, body)
        if what == "late":
            await reader.read()
            return False
        if what == "garbage":
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"metadat')
            await writer.drain()
            return True
        return await self._answer(writer, status, found)

    async def _answer(self, writer: asyncio.StreamWriter, status: int, found: Object) -> bool:
        raw = json.dumps(found).encode()
        name = NAMES.get(status, "Other")
        writer.write(f"HTTP/1.1 {status} {name}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
        await writer.drain()
        return True

    def _done(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> tuple[int, Object]:
        """A call and its answer."""
        parts = path.strip("/").split("/")
        if parts[:5] == ["api", "v1", "namespaces", "fleet", "pods"] and method == "GET":
            if not self._allows("", "pods", "list"):
                return 403, {"message": "may not list"}
            items = [p for p in self.pods.values() if _selected(p, query.get("labelSelector", ""))]
            return 200, {"metadata": {"resourceVersion": str(self.version)}, "items": copy.deepcopy(items)}
        if parts[:6] == ["apis", "apps", "v1", "namespaces", "fleet", "deployments"] and parts[7:] == ["scale"]:
            return self._scaled(method, parts[6], body)
        if parts[1:2] == ["coordination.k8s.io"] and parts[-1] == "front":
            return self._leased(method, body)
        return 404, {"message": f"there is no {path}"}

    def _scaled(self, method: str, name: str, body: bytes) -> tuple[int, Object]:
        if not self._allows("apps", "deployments/scale", {"GET": "get", "PATCH": "patch"}.get(method, method), name):
            return 403, {"message": f"may not {method} the scale of {name}"}
        if name not in self.scales:
            return 404, {"message": f'deployments.apps "{name}" not found'}
        scale = self.scales[name]
        if method == "PATCH":
            change = json.loads(body)
            expected = change.get("metadata", {}).get("resourceVersion")
            if expected not in (None, str(scale["version"])):
                return 409, {"message": "the object has been modified"}
            if change["spec"]["replicas"] != scale["replicas"]:
                self.scale(name, change["spec"]["replicas"])
                scale = self.scales[name]
        return 200, {
            "kind": "Scale",
            "metadata": {"name": name, "resourceVersion": str(scale["version"])},
            "spec": {"replicas": scale["replicas"]} if scale["replicas"] else {},
        }

    def _leased(self, method: str, body: bytes) -> tuple[int, Object]:
        if not self._allows(
            "coordination.k8s.io", "leases", {"GET": "get", "PUT": "update"}.get(method, method), "front"
        ):
            return 403, {"message": f"may not {method} the lease"}
        if method == "PUT":
            new = json.loads(body)
            if new["metadata"].get("resourceVersion") != self.lease["metadata"]["resourceVersion"]:
                return 409, {"message": "the object has been modified"}
            self.version += 1
            new["metadata"]["resourceVersion"] = str(self.version)
            self.lease = new
            self.holders.append(new["spec"]["holderIdentity"])
        return 200, copy.deepcopy(self.lease)

    async def _watch(self, writer: asyncio.StreamWriter, query: Mapping[str, str]) -> bool:
        """Events after a version, until the time is over or a test ends it."""
        at = int(query["resourceVersion"])
        if at < self.floor and not self.gone_as_event:
            return await self._answer(writer, 410, {"message": "too old resource version"})
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        if at < self.floor:
            error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            _chunk(writer, json.dumps({"type": "ERROR", "object": error}) + "\n")
            _chunk(writer, "")
            await writer.drain()
            return True
        cut = self._cut_watches
        until = asyncio.get_running_loop().time() + float(query["timeoutSeconds"])
        while asyncio.get_running_loop().time() < until and not cut.is_set():
            changed = self._changed
            for version, kind, pod in tuple(self._events):
                if version > at and _selected(pod, query.get("labelSelector", "")):
                    _chunk(writer, json.dumps({"type": kind, "object": pod}) + "\n")
            at = max(at, self.version)
            _chunk(
                writer, json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(at)}}}) + "\n"
            )
            await writer.drain()
            waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(cut.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=2)
            finally:
                for wait in waits:
                    wait.cancel()
        if cut.is_set() and self._garbage:
            _chunk(writer, '{"type": "MODIFIED", "obj')
            await writer.drain()
            return False
        _chunk(writer, "")
        await writer.drain()
        return True

    _garbage = False

    def _allows(self, group: str, resource: str, verb: str, name: str = "") -> bool:
        """Whether a rule of the Role names it."""
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and (not name or name in rule.get("resourceNames", (name,)))
            for rule in self.rules
        )


class Link:
    """A network between one front and something: TCP, passed on, cut and healed. What a cut held back is lost."""

    def __init__(self, port: int) -> None:
        """To `port` of loopback."""
        self._to = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self.port = 0

    async def open(self) -> None:
        """Listen on a port of loopback."""
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._whole.clear()

    def heal(self) -> None:
        """As before."""
        self._whole.set()

    async def close(self) -> None:
        """End."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _abort(self._connections)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer.transport)
        there: asyncio.StreamWriter | None = None
        try:
            from_there, there = await asyncio.open_connection("127.0.0.1", self._to)
            self._connections.add(there.transport)
            await asyncio.gather(self._pump(reader, there), self._pump(from_there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            if there is not None:
                there.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._whole.wait()
            if source.exception() is not None or source.at_eof():
                break  # whoever sent it has given up: his kernel sends it no more
            sink.write(data)
            await sink.drain()
        sink.close()


async def _abort(connections: weakref.WeakSet[asyncio.WriteTransport]) -> None:
    """Close them now, whatever was still to be sent."""
    for connection in tuple(connections):
        connection.abort()
    await asyncio.sleep(0)  # the loop closes their sockets in its next round


def _selected(pod: Object, selector: str) -> bool:
    """Whether labels are as `a=b,c=d` asks."""
    labels = pod["metadata"]["labels"]
    return all(labels.get(k) == v for k, _, v in (pair.partition("=") for pair in selector.split(",") if pair))


def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    raw = text.encode()
    writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
