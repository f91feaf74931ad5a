"""The runtime: from `generated/<deployment>/` to a served fleet, in one process and one event loop.

Lock → adopt or stop leftovers → open the front (it answers /health while models load) → start servers in order →
serve → drain → stop. `python -m launcher.runtime DIR` is what `spawn_detached` and units run. I/O.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path

from launcher.base.background import Background, BackgroundHandler
from launcher.errors import LaunchError
from launcher.files.state import deployment_state_dir
from launcher.runtime.deployment import read_deployment, require_ours
from launcher.runtime.fleet import Runtime, UnitsOptions
from launcher.runtime.front_only import route_only as serve_front_only
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.detached import spawn_runtime
from launcher.supervise.events import AnyEvent, FleetFailed

__all__ = [
    "ControlClient",
    "NoRuntimeError",
    "UnitsOptions",
    "read_deployment",
    "require_ours",
    "run",
    "spawn_detached",
]

_LAST_WORDS_S = 2.0
"""Seconds that the end waits for `on_event` to take the last events."""


def ignore_event(_: AnyEvent) -> None:
    """Do nothing: the default for callers that do not watch."""


def run(
    deployment_dir: Path,
    *,
    on_event: Callable[[AnyEvent], None] = ignore_event,
    route_only: bool = False,
    units: UnitsOptions | None = None,
    api_key_file: Path | None = None,
    asked_ns: int | None = None,
) -> int:
    """Run the deployment in the foreground until SIGTERM, SIGINT or a stop over the control socket; 0 then.

    `units`: the processes are systemd units, which keep running when a signal ends the runtime. `route_only`: only the
    front runs, for fleets whose processes are started and stopped by others. Keys are read from `api_key_file` where it
    is given (a unit's credential), otherwise from the file that the routes name.

    `asked_ns`: when the start was asked for (`launcher.files.asked_at_ns`); if everything was told to stop since,
    nothing is started. `on_event` is called in a thread of its own and may block: events that it does not take in time
    are dropped. A second signal kills instead of draining.

    Raises ConfigError (unreadable manifest), HostError (already running, port taken), SuperviseError (a fatal server
    did not become ready, or everything was told to stop before all were; everything that was started is stopped), each
    after a `FleetFailed` event.
    """
    import uvloop  # noqa: PLC0415 - only who runs a fleet pays for it

    background = Background()

    def emit(event: AnyEvent) -> None:
        background.put(functools.partial(on_event, event))

    if not logging.root.handlers:
        handler = BackgroundHandler()
        handler.setLevel(logging.WARNING)
        logging.root.addHandler(handler)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                serve_front_only(deployment_dir, emit, api_key_file)
                if route_only
                else _runtime(deployment_dir, emit, asked_ns, units, api_key_file).main()
            )
    except LaunchError as error:
        emit(FleetFailed(exit_code=error.exit_code, findings=error.findings))
        raise
    finally:
        background.close(_LAST_WORDS_S)
    return 0


def _runtime(
    deployment_dir: Path,
    emit: Callable[[AnyEvent], None],
    asked_ns: int | None,
    units: UnitsOptions | None,
    api_key_file: Path | None,
) -> Runtime:
    """The runtime for this deployment: in a cluster a `ClusterRuntime`. Raises ConfigError."""
    made = Runtime(deployment_dir, emit, asked_ns, units=units, api_key_file=api_key_file)
    if made.in_cluster:
        from launcher.runtime.cluster import ClusterRuntime  # noqa: PLC0415 - httpx, 0.2 s that only a pod needs

        return ClusterRuntime(deployment_dir, emit, asked_ns, api_key_file=api_key_file)
    return made


def spawn_detached(
    deployment_dir: Path, *, on_event: Callable[[AnyEvent], None] = ignore_event, asked_ns: int | None = None
) -> int:
    """Run the deployment in the background; return the runtime's pid once the fleet is ready.

    See `run` for `on_event`, `asked_ns` and the errors raised.
    """
    manifest, _ = read_deployment(deployment_dir)
    state_dir = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir, create=True)
    return spawn_runtime(deployment_dir, state_dir, on_event, asked_ns)
