"""Steps after ready: an HTTP request to a server, a command, or a Python entry point; bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from launcher.errors import SuperviseError
from launcher.ir.fleet import HookUnit
from launcher.ir.live import HookStatus
from launcher.supervise import events, http, logs
from launcher.supervise.readiness import auth_headers
from launcher.supervise.spec import ProcessSpec

_CALL = (
    "import importlib, sys; m, _, f = sys.argv[1].partition(':'); done = getattr(importlib.import_module(m), f)();"
    " sys.exit('it returned False' if done is False else 0)"
)
"""Calls `module:function`; a function that returns False has failed, like one that raises."""
_TAIL_LINES = 5


class Hooks:
    """The hooks of one manifest and their results. Used in one event loop."""

    def __init__(self, units: Iterable[HookUnit], emit: Callable[[events.AnyEvent], None]) -> None:
        """`emit` gets a `HookDone` for each hook that ran."""
        self._emit = emit
        self._units = {unit.name: unit for unit in units}
        self._results: dict[str, HookStatus] = {}

    def take_over(self, units: Iterable[HookUnit]) -> None:
        """Take over the hooks of another manifest; the results of unchanged hooks are kept."""
        before, self._units = self._units, {unit.name: unit for unit in units}
        self._results = {n: r for n, r in self._results.items() if before[n] == self._units.get(n)}

    def status(self) -> tuple[HookStatus, ...]:
        """Status of every hook, in order."""
        return tuple(self._results.get(name) or _pending(unit) for name, unit in self._units.items())

    async def run(self, specs: Mapping[str, ProcessSpec], state_dir: Path) -> None:
        """Run all hooks in order, up to one with `on_failure=fail` that fails: then SuperviseError is raised."""
        for unit in self._units.values():
            error = await self._run(unit, specs, state_dir)
            if error is not None and unit.on_failure == "fail":
                message = f"hook {unit.name} failed: {error}"
                raise SuperviseError.of("supervise/hook-failed", message, key=f"hooks.{unit.name}")

    async def run_again(self, servers: Collection[str], specs: Mapping[str, ProcessSpec], state_dir: Path) -> None:
        """Run the hooks that call one of `servers`, which were restarted, and those that never ran."""
        for unit in tuple(self._units.values()):
            if unit.server in servers or unit.name not in self._results:
                await self._run(unit, specs, state_dir)

    async def _run(self, unit: HookUnit, specs: Mapping[str, ProcessSpec], state_dir: Path) -> str | None:
        """Run one hook and keep its result. Returns the error; None: success."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._results[unit.name] = msgspec.structs.replace(_pending(unit), state="running")
        if unit.server is not None:
            error = await _post(unit, specs)
        else:
            argv = unit.command or (sys.executable, "-c", _CALL, unit.python or "")
            error = await _execute(argv, unit.timeout_s, state_dir, unit.name)
        seconds = loop.time() - begun
        self._results[unit.name] = msgspec.structs.replace(
            _pending(unit),
            state="done" if error is None else "failed",
            seconds=seconds,
            error=error,
            finished_at=time.time(),
        )
        self._emit(events.HookDone(name=unit.name, seconds=seconds, error=error))
        return error


def _pending(unit: HookUnit) -> HookStatus:
    kind: Literal["http", "command", "python"] = "http" if unit.server else "python" if unit.python else "command"
    return HookStatus(name=unit.name, kind=kind, state="pending", on_failure=unit.on_failure)


async def _post(hook: HookUnit, specs: Mapping[str, ProcessSpec]) -> str | None:
    """POST the body to the server's path. Returns the error; None: any 2xx answer."""
    spec = specs.get(hook.server or "")
    if spec is None:
        return f"there is no server {hook.server!r}"
    path = "/" + (hook.path or "").removeprefix("/")
    try:
        reply = await http.request(
            spec.unit.host, spec.unit.port, path, body=hook.body, timeout_s=hook.timeout_s, headers=auth_headers(spec)
        )
    except OSError as error:
        return f"{spec.name}{path}: {error or type(error).__name__}"
    if 200 <= reply.status < 300:
        return None
    return f"{spec.name}{path} answered {reply.status}: {reply.body[:200].decode(errors='replace')}"


async def _execute(argv: tuple[str, ...], timeout_s: float, state_dir: Path, name: str) -> str | None:
    """Run a program to its end. Returns the error; None: exit code 0.

    On timeout its whole session is killed. Its output goes to `logs/hook-NAME.log`; `LAUNCH_STATE_DIR_OF_FLEET` is set.
    """
    log = state_dir / "logs" / f"hook-{name}.log"
    log.unlink(missing_ok=True)
    output = logs.open_log(log)
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "LAUNCH_STATE_DIR_OF_FLEET": str(state_dir)},
        )
    except OSError as error:
        return f"cannot start {argv[0]}: {error}"
    finally:
        os.close(output)
    try:
        async with asyncio.timeout(timeout_s):
            code = await child.wait()
    except TimeoutError:
        return f"not done after {timeout_s:g} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if code == 0:
        return None
    return " | ".join((f"exit code {code}", *logs.tail(log, _TAIL_LINES)))
