"""Steps after ready: an HTTP request to a server, a command, or a Python entry point; bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.ir.fleet import HookUnit
from launcher.supervise import http, logs
from launcher.supervise.readiness import auth_headers
from launcher.supervise.spec import ProcessSpec

_CALL = "import importlib, sys; m, _, f = sys.argv[1].partition(':'); getattr(importlib.import_module(m), f)()"
_TAIL_LINES = 5


async def run_hook(hook: HookUnit, specs: Mapping[str, ProcessSpec], state_dir: Path) -> str | None:
    """Run `hook`; None when it succeeded, else why not. Never raises for what the hook does.

    Commands and entry points run as processes (an entry point with this interpreter), with their output in
    `logs/hook-NAME.log` and `LAUNCH_STATE_DIR_OF_FLEET` set; on timeout their whole session is killed.
    """
    if hook.server is not None:
        return await _post(hook, specs)
    argv = hook.command or (sys.executable, "-c", _CALL, hook.python or "")
    return await _execute(argv, hook.timeout_s, state_dir, hook.name)


async def _post(hook: HookUnit, specs: Mapping[str, ProcessSpec]) -> str | None:
    """POST the body to the server's path; any 2xx is success."""
    spec = specs.get(hook.server or "")
    if spec is None:
        return f"there is no server {hook.server!r}"
    path = "/" + (hook.path or "").removeprefix("/")
    try:
        reply = await http.request(
            spec.host, spec.port, path, body=hook.body, timeout_s=hook.timeout_s, headers=auth_headers(spec)
        )
    except OSError as error:
        return f"{spec.name}{path}: {error or type(error).__name__}"
    if 200 <= reply.status < 300:
        return None
    return f"{spec.name}{path} answered {reply.status}: {reply.body[:200].decode(errors='replace')}"


async def _execute(argv: tuple[str, ...], timeout_s: float, state_dir: Path, name: str) -> str | None:
    """Run a program to its end; exit code 0 is success."""
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
