"""The front before a server of `served`: imported while that loads."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import tempfile
from http.client import HTTPConnection, HTTPException
from typing import Any

import uvloop

from launcher.route import Front, StaticUpstreams, bind_more, serve
from tests.route.fleet import front_unit, table, target


def run(server: subprocess.Popen[bytes], args: list[str], port: int, own: int) -> None:
    """Serve on `port` what `server`, started with `args`, answers on `own`; until SIGTERM or its end."""
    uvloop.run(_serve(server, args, port, own))


async def _serve(server: subprocess.Popen[bytes], args: list[str], port: int, own: int) -> None:
    """A front for this one server, open once it answers, until SIGTERM or the server's end."""
    shutdown = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shutdown.set)

    def value(*names: str) -> str | None:
        return next((args[args.index(n) + 1] for n in names if n in args), None)

    while not await asyncio.to_thread(_answers, own):
        if server.poll() is not None or shutdown.is_set():
            return
        await asyncio.sleep(0.02)
    aliases = sorted(filter(None, (value("--alias", "-a") or "").split(",")))  # the server lists them so
    unit: dict[str, Any] = {
        "slots": int(value("--parallel", "-np") or 4),
        "aliases": tuple(aliases[1:]),
        "roles": tuple(filter(None, (value("--tags") or "").split(","))),
        "modalities": ("text", "image") if value("--mmproj") else ("text",),
        "request_timeout_s": 600,
    }
    host, *more = (value("--host") or "127.0.0.1").split(",")
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        limits: dict[str, Any] = {"max_body_bytes": 1 << 30, "host": host, "port": port, "listen": tuple(more)}
        if key := value("--api-key"):
            keys.write(f"{key}\n")
            keys.flush()
            limits["api_key_file"] = unit["api_key_file"] = keys.name
        name = aliases[0] if aliases else "model"
        routes = table(target(name, own, **unit), front=front_unit(**limits), unknown_model="default")
        front = Front(routes, StaticUpstreams())
        serving = serve(front, host=host, port=port, more=bind_more(front), shutdown=shutdown, drain_timeout_s=1)
        await asyncio.gather(serving, _watch(server, shutdown))


def _answers(port: int) -> bool:
    """Whether the server there is ready."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


async def _watch(server: subprocess.Popen[bytes], shutdown: asyncio.Event) -> None:
    """End with the server."""
    while server.poll() is None and not shutdown.is_set():  # noqa: ASYNC110  # a process has no event
        await asyncio.sleep(0.1)
    shutdown.set()
