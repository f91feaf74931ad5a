"""A client of the Kubernetes API server: the account's token, a time limit per call, watches by line. I/O."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from launcher.base.decoding import decoded
from launcher.supervise.scheduled import SchedulerError

WATCH_S = 30
"""Seconds that the server keeps a watch open; a connection that is silent for longer is dead."""
_LATE_S = 5.0
MERGE = "application/merge-patch+json"


class ApiServer:
    """Calls to one API server, made in one event loop."""

    def __init__(self, url: str, account_dir: Path, *, limit_s: float) -> None:
        """`account_dir` has `token`, and `ca.crt` for an https `url`. `limit_s`: seconds per call, there and here."""
        self._url = url
        self._account = account_dir
        self._limit_s = limit_s
        self._client: httpx.AsyncClient | None = None

    async def ask(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None, kind: str = ""
    ) -> dict[str, Any]:
        """Call the server; returns the object in its answer. Raises SchedulerError.

        A change that is not done within the limit is given up by both sides: by the server for its `timeout` parameter,
        here by a connection reset, so that no part of it is still on its way.
        """
        limited = {**(query or {}), **({} if method == "GET" else {"timeout": f"{round(self._limit_s * 1000)}ms"})}
        content = None if body is None else msgspec.json.encode(body)
        headers = self._headers() | ({"content-type": kind or "application/json"} if body is not None else {})
        try:
            async with asyncio.timeout(self._limit_s):
                answer = await self._connected().request(method, path, params=limited, content=content, headers=headers)
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise SchedulerError(0, f"{method} {path}: {_reason(error)}") from None
        return _object(answer.status_code, answer.content, f"{method} {path}")

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Events since the `resourceVersion` in `query`, until the server ends the watch. Raises SchedulerError."""
        asked = {**query, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        limits = httpx.Timeout(self._limit_s, read=WATCH_S + _LATE_S)
        try:
            async with self._connected().stream(
                "GET", path, params=asked, headers=self._headers(), timeout=limits
            ) as answer:
                if answer.status_code != 200:
                    _object(answer.status_code, await answer.aread(), f"watch {path}")
                async for line in answer.aiter_lines():
                    event = _object(200, line.encode(), f"watch {path}")
                    if event.get("type") == "ERROR":
                        status = event.get("object")
                        code = status.get("code") if isinstance(status, dict) else None
                        raise SchedulerError(code if isinstance(code, int) else 500, f"watch {path}: {status}")
                    yield event
        except (httpx.HTTPError, OSError) as error:
            raise SchedulerError(0, f"watch {path}: {_reason(error)}") from None

    async def close(self) -> None:
        """Close every connection; the next call opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _headers(self) -> dict[str, str]:
        """Headers with the token, read anew: the kubelet replaces it before it expires. Raises SchedulerError."""
        try:
            token = (self._account / "token").read_text().strip()
        except OSError as error:
            raise SchedulerError(401, f"no token of the API server: {error}") from None
        return {"authorization": f"Bearer {token}", "accept": "application/json"}

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            if not self._url:
                raise SchedulerError(0, "this is no pod of a cluster: KUBERNETES_SERVICE_HOST is not set")
            reset = struct.pack("ii", 1, 0)  # what was not sent when we close is never sent
            options: list[tuple[int, int, int] | tuple[int, int, bytes]] = [
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._limit_s * 1000)),
                (socket.SOL_SOCKET, socket.SO_LINGER, reset),
            ]
            secure = self._url.startswith("https:")
            trusted = ssl.create_default_context(cafile=str(self._account / "ca.crt")) if secure else False
            # no proxy of the environment's: the server is the cluster's own
            transport = httpx.AsyncHTTPTransport(verify=trusted, trust_env=False, socket_options=options)
            self._client = httpx.AsyncClient(base_url=self._url, transport=transport, timeout=self._limit_s)
        return self._client


def in_cluster_url() -> str:
    """URL of the API server for a pod, from the variables that the kubelet sets; "" outside of a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""


def _reason(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _object(status: int, raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object `raw`. Raises SchedulerError if it is none, or if `status` is no success."""
    found = decoded(raw, dict[str, Any])
    if not 200 <= status < 300:
        message = (found or {}).get("message")
        raise SchedulerError(status, f"{what}: {message or f'status {status}'}")
    if found is None:
        raise SchedulerError(0, f"{what}: the answer is no object")
    return found
