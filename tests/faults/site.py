"""A fleet and its front in the test's own event loop, and clients that are told apart by what they get."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from launcher.errors import SuperviseError
from launcher.files import write_atomic
from launcher.ir.fleet import ServerUnit
from launcher.route import Front, bind, serve
from launcher.supervise import Children, Supervisor
from tests.supervise.conftest import Watcher, children, manifest, routes

QUICK = {"temperature": 0, "n_predict": 1}


class Site:
    """A supervisor, what it told, and its front's URL."""

    def __init__(
        self, supervisor: Supervisor, owner: Children, watcher: Watcher, url: str, client: httpx.AsyncClient
    ) -> None:
        """Made by `site`."""
        self.owner = owner
        self.supervisor = supervisor
        self.watcher = watcher
        self.url = url
        self.client = client

    def pid(self, name: str) -> int:
        """The process of `name`, which must have one."""
        pid = self.status(name).pid
        assert pid is not None
        return int(pid)

    def status(self, name: str) -> Any:
        """`name` as `launch status` shows it."""
        return next(p for p in self.supervisor.status().processes if p.name == name)

    async def ask(self, name: str, **body: Any) -> tuple[int, str]:
        """One completion: the status, and the code of an error or "" for an answer."""
        try:
            answer = await self.client.post("/completion", json={"model": name, "prompt": "a", **QUICK, **body})
        except httpx.RemoteProtocolError:
            return 0, "cut"
        if answer.status_code == 200:
            return 200, ""
        return answer.status_code, answer.json()["error"]["code"]

    async def stream(self, name: str, began: asyncio.Event, **body: Any) -> str:
        """A streamed completion: `clean`, `error` (an error event ends it) or `cut`; `began` at the first token."""
        asked = {"model": name, "prompt": "a", "stream": True, "ignore_eos": True, **body}
        text = ""
        try:
            async with self.client.stream("POST", "/completion", json=asked) as answer:
                async for piece in answer.aiter_text():
                    text += piece
                    began.set()
        except httpx.RemoteProtocolError:
            return "cut"
        last = text.strip().rpartition("\n\n")[2]
        return "error" if "error" in last else "clean"

    async def until(self, holds: Callable[[], Any], timeout_s: float = 30) -> None:
        """Poll until `holds()`."""
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - files and processes have no event
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site(
    state_dir: Path,
    front_port: int,
    *servers: ServerUnit,
    fails: bool = False,
    write: Callable[[Path, bytes], None] = write_atomic,
    queue_size: int = 64,
    **changes: Any,
) -> AsyncIterator[Site]:
    """`servers` run and are served; everything is stopped at the end. `fails`: the start may."""
    fleet = manifest(*servers, **changes)
    watcher = Watcher()
    owner = children(state_dir, write)
    supervisor = Supervisor(fleet, state_dir=state_dir, owner=owner, emit=watcher)
    table = routes(fleet, front_port)
    table = msgspec.structs.replace(table, front=msgspec.structs.replace(table.front, queue_size=queue_size))
    front = Front(table, supervisor)
    shutdown = asyncio.Event()
    serving = asyncio.create_task(
        serve(
            front,
            host="127.0.0.1",
            port=front_port,
            sock=bind(front, "127.0.0.1", front_port),
            shutdown=shutdown,
            drain_timeout_s=1,
        )
    )
    url = f"http://127.0.0.1:{front_port}"
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
            with contextlib.suppress(*([SuperviseError] if fails else [])):
                await supervisor.recover()
                await supervisor.start()
            yield Site(supervisor, owner, watcher, url, client)
    finally:
        shutdown.set()
        await asyncio.gather(serving, return_exceptions=True)
        await supervisor.stop_all("end of test")
