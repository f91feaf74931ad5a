"""Whether the upstreams of a fleet answer from here, now. I/O: one request each, at the same time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import msgspec

from launcher.base.decoding import decoded
from launcher.base.regular import server_key
from launcher.ir.fleet import OutsideUnit, RouteTarget, RoutingTable

_PATIENCE_S = 5.0
_MOST_BYTES = 4 << 20


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model]


def unwell_upstreams(routes: RoutingTable) -> dict[str, str]:
    """Upstream → what is wrong with it, without those that answer correctly. Takes at most five seconds."""
    asked = {t.name: t for t in routes.targets.values() if t.outside is not None and not t.outside.supervised}
    if not asked:
        return {}
    with ThreadPoolExecutor(min(16, len(asked))) as pool:
        found = dict(zip(asked, pool.map(_wrong, asked.values()), strict=True))
    return {name: wrong for name, wrong in found.items() if wrong is not None}


def _wrong(target: RouteTarget) -> str | None:
    outside = target.outside
    assert outside is not None  # noqa: S101  # those alone are asked
    try:
        status, body = _asked(target, outside, _key_lines(target, outside))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"does not answer: {error}"
    if status in (401, 403):
        return f"does not take its key (status {status})" if target.api_key_file else f"asks for a key ({status})"
    if status >= 300:
        return f"answers {status} on {outside.health_path}"
    missing = _missing(target, body)
    return f"does not list {', '.join(missing)}" if missing else None


def _key_lines(target: RouteTarget, outside: OutsideUnit) -> Mapping[str, str]:
    """The header line with the upstream's key; empty where it needs none. Raises OSError."""
    if target.api_key_file is None:
        return {}
    key = server_key(target.name, target.api_key_file)
    return {outside.key_header: f"Bearer {key}" if outside.key_header == "authorization" else key}


def _asked(target: RouteTarget, outside: OutsideUnit, lines: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of its health path, all within the patience. Raises OSError, ValueError, HTTPException."""
    connection: http.client.HTTPConnection
    if urlsplit(outside.url).scheme == "https":
        context = ssl.create_default_context(cafile=outside.ca_file)
        connection = http.client.HTTPSConnection(target.host, target.port, timeout=_PATIENCE_S, context=context)
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=_PATIENCE_S)
    until = time.monotonic() + _PATIENCE_S
    connection.connect()
    clock = threading.Timer(until - time.monotonic(), _hang_up, [connection.sock])  # the timeout is of each byte
    clock.start()
    try:
        connection.request("GET", outside.health_path, headers=dict(lines))
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    finally:
        clock.cancel()
        connection.close()
    if time.monotonic() >= until:
        raise TimeoutError("timed out")
    return answer.status, body


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of one with TLS, too, without its last words


def _missing(target: RouteTarget, body: bytes) -> list[str]:
    """Models of `target` that are missing in a list of models; none where `body` is no such list."""
    found = decoded(body, _Models)
    if found is None:
        return []
    listed = {model.id for model in found.data}
    changes = (target.request_set, *(face.request_set for face in target.faces.values()))
    names = dict.fromkeys(str(change.get("model", "")) for change in changes)
    return [name for name in names if name and name not in listed]
