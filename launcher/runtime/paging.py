"""The interface between the page at /ui and one runtime. I/O: the clock, child processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from launcher.base.decoding import decoded
from launcher.events import EventLog
from launcher.hardware.load import device_loads
from launcher.ir.events import Record
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import Control, FleetStatus, UnavailableError
from launcher.orchestrate import FILE_NAME, list_projects, read_generation, recent_generations
from launcher.orchestrate.pool import Verb
from launcher.route import Front
from launcher.runtime.observing import Observer
from launcher.supervise import Supervisor

_COMMAND_S = 600.0
_LAUNCH = "from launcher.cli import main; main()"


class Pages:
    """The fleet as the page sees it. All methods are called in the runtime's loop."""

    def __init__(
        self,
        control: Control,
        front: Front,
        supervisor: Supervisor,
        events: EventLog,
        observer: Observer,
        *,
        served: Callable[[], tuple[FleetManifest, RoutingTable]],
        state_dir: Callable[[], Path],
    ) -> None:
        """`served`: the present manifest and routes. Nothing is read before a request."""
        self._control, self._front, self._supervisor = control, front, supervisor
        self._log, self._observer = events, observer
        self._served, self._state_dir = served, state_dir
        self._compiling = asyncio.Lock()

    def status(self) -> FleetStatus:
        """The fleet's status now."""
        return self._control.status()

    def events(self, after: int) -> tuple[Record, ...]:
        """The events after number `after`, oldest first, as far as they are kept."""
        return self._log.after(after)

    def listen(self, listener: Callable[[Record], None]) -> Callable[[], None]:
        """Call `listener` with every event; returns a function that ends this."""
        return self._log.listen(listener)

    def running(self) -> list[Any]:
        """The requests that run or wait."""
        return list(self._front.running())

    def ended(self, after: int) -> list[Any]:
        """The requests that ended after number `after`."""
        return list(self._front.requests.ended(after)) if self._front.requests.number > after else []

    def speeds(self) -> dict[str, list[tuple[int, float]]]:
        """By server: Unix time of each minute of the last hour, and mean tokens/s of the answers that ended in it."""
        return self._front.requests.speeds()

    def cancel(self, request_id: str) -> bool:
        """End a request; False where it is not running."""
        return self._front.cancel(request_id)

    def fleet(self) -> dict[str, Any]:
        """The manifest's contents without command lines and environments."""
        manifest, table = self._served()
        names = (
            *("name", "model", "slots", "n_ctx_per_slot", "tier", "start", "exclusive", "roles", "aliases"),
            *("memory", "proved"),
        )
        servers = []
        for unit in manifest.servers:
            target = table.targets.get(unit.name)
            more = {
                "embedding": target.embedding if target else False,
                "modalities": target.modalities if target else (),
                # what a server takes in all, at load
                "rungs": [
                    {"label": rung.label, "bytes": sum(need.committed_bytes + need.file_bytes for need in rung.memory)}
                    for rung in unit.rungs
                ],
            }
            servers.append({**{name: getattr(unit, name) for name in names}, **more})
        return {
            "deployment": manifest.deployment,
            "hardware": manifest.hardware,
            "version": manifest.launch_version,
            "devices": manifest.devices,
            "servers": servers,
            "services": [
                {
                    **{name: getattr(unit, name) for name in ("name", "ram_bytes", "vram_bytes", "start", "exclusive")},
                    "about": unit.description,
                }
                for unit in manifest.services
            ],
            "upstreams": [
                {"name": name, "url": unit.outside.url, "slots": unit.slots, "models": (unit.name, *unit.faces)}
                for name, unit in table.targets.items()
                if unit.outside is not None and not unit.outside.supervised
            ],
            "auto": sorted(self._front.view.orchestrated),
            "names": sorted({*table.names, *table.targets}),
        }

    async def loads(self) -> Any:
        """The present load of each device; in a thread, because drivers may be slow."""
        return await asyncio.to_thread(device_loads)

    async def start(self, name: str) -> None:
        """Start a server as a request would, also after a stop by hand. Raises UnavailableError, KeyError."""
        process = {p.name: p for p in self.status().processes}[name]
        if process.state in ("stopped", "failed"):
            manifest, _ = self._served()
            timeouts = {unit.name: unit.start_timeout_s for unit in manifest.servers}
            try:
                async with self._supervisor.lease(name, timeouts.get(name, 60.0)):
                    pass  # it was started: that is all
            except UnavailableError as error:
                if error.code != "server_stopped":
                    raise
                await self._control.reload((name,), None)  # somebody had stopped it by hand

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop servers. Raises KeyError."""
        await self._control.stop(names)

    async def restart(self, name: str) -> dict[str, Any]:
        """Restart a server with the present manifest. Raises KeyError."""
        return await self._control.reload((name,), None)

    async def change_rung(self, name: str, *, down: bool) -> None:
        """Run a server one fallback level smaller, or as planned again. Raises UnavailableError, KeyError."""
        await self._supervisor.change_rung(name, down=down)

    def pool(self, verb: str, name: str) -> None:
        """Change the warm pool; `name`: a worker, its role, alias or model. Raises KeyError, SuperviseError."""
        pool = self._observer.pool
        workers = pool.workers()
        if not workers:
            needs = "`orchestration` with a router, and its warm_pool.models_max"
            raise KeyError(f"{name!r}: this fleet has no warm pool, which needs {needs}")
        units = [unit for unit in self._served()[0].servers if unit.name in workers]
        for unit in units:
            if name in (unit.name, *unit.roles, *unit.aliases, unit.model, unit.model.partition(" ")[0]):
                pool.by_hand(msgspec.convert(verb, Verb), unit.name)
                return
        raise KeyError(f"{name!r} is none of the pool's models; they are {', '.join(workers)}")

    async def projects(self) -> list[Any]:
        """Every project, the most recently used first."""
        found = await self._read_memory(list_projects)
        return sorted(found or [], key=lambda project: -project.last_at)

    async def project(self, owner: str, name: str) -> list[dict[str, Any]]:
        """The last generations of a project, the newest first."""
        return await self._read_memory(recent_generations, owner, name) or []

    async def generation(self, generation_id: str) -> dict[str, Any] | None:
        """A generation with its blocks, verdicts and notes; None where there is none."""
        found: dict[str, Any] | None = await self._read_memory(read_generation, generation_id)
        return found

    async def _read_memory(self, read: Callable[..., Any], *words: str) -> Any:
        """Read the project memory in a thread; None where there is none."""
        path = self._state_dir() / FILE_NAME
        return await asyncio.to_thread(read, path, *words) if path.is_file() else None

    async def command(self, *words: str) -> dict[str, Any]:
        """Run a `launch` command on this fleet and read its JSON: this process compiles nothing.

        One at a time, however many pages ask: each compiles the whole fleet. A command that fails gives its `findings`,
        and one without JSON the end of its error output.
        """
        async with self._compiling:
            return await _launch(*words, "--fleet", self._served()[0].deployment)

    async def explain(self, code: str) -> dict[str, Any]:
        """The explanation of a finding's code."""
        return await _launch("explain", code, "--json")

    def make_link(self) -> str:
        """A token that opens one session."""
        return self._front.sessions.make_link()

    def enter(self, *, token: str, key: str) -> str | None:
        """The Set-Cookie value of a new session; None if neither token nor key is accepted."""
        sessions = self._front.sessions
        session = sessions.enter(token) if token else None
        if session is None and key and self._front.admits(key):
            session = sessions.open(key)
        if session is None:
            return None
        secure = "; Secure" if self._front.unit.tls_cert_file is not None else ""
        return f"{sessions.cookie}={session}; HttpOnly; SameSite=Strict; Path=/{secure}"

    def leave(self, cookies: str) -> None:
        """End the session named in a Cookie header."""
        self._front.sessions.end(cookies.encode("latin-1", "replace"))


async def _launch(*words: str) -> dict[str, Any]:
    """Run a `launch` command; returns its JSON, or the end of its error output."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LAUNCH, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_COMMAND_S):
            out, err = await child.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    document = decoded(out, dict[str, Any])
    if document is not None:
        return {**document, "exit_code": child.returncode}
    return {"error": err.decode(errors="replace")[-2000:], "findings": [], "exit_code": child.returncode}
