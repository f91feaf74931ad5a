"""The front alone, for fleets whose processes somebody else (systemd) keeps running. I/O."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.errors import LaunchError
from launcher.files import deployment_state_dir
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.runtime.deployment import read_deployment
from launcher.runtime.host import front_url, notify, signals
from launcher.supervise.events import AnyEvent, FleetReady, RuntimeStarted

_LOG = logging.getLogger("launch.runtime")


async def route_only(deployment_dir: Path, on_event: Callable[[AnyEvent], None], api_key_file: Path | None) -> None:
    """The front alone, until SIGTERM: somebody else (systemd units) keeps the servers running."""
    from launcher import orchestrate, route  # noqa: PLC0415 - late, as above

    manifest, table = _with_keys(deployment_dir, api_key_file)

    def state_dir() -> Path:
        """Where the project memory lies; only asked for where there is one."""
        return deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir, create=True)

    front = route.Front(table, route.StaticUpstreams(), orchestrator=orchestrate.Orchestrator(table, state_dir))
    sock = route.bind(front, table.front.host, table.front.port)
    url = front_url(table)
    told = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        """SIGHUP: read the routes again, or keep the old ones; any other ends."""
        if number != signal.SIGHUP:
            told.set()
            return
        try:
            front.replace_table(_with_keys(deployment_dir, api_key_file)[1])
        except LaunchError as error:
            _LOG.error("the routes are kept: %s", error)

    on_event(RuntimeStarted(deployment=manifest.deployment, pid=os.getpid(), state_dir="", front=url, processes=()))
    on_event(FleetReady(seconds=0, front=url, ready=()))
    notify("READY=1")
    with signals(on_signal):
        await route.serve(
            front,
            host=table.front.host,
            port=table.front.port,
            sock=sock,
            shutdown=told,
            drain_timeout_s=manifest.supervisor.drain_timeout_s,
        )


def _with_keys(deployment_dir: Path, api_key_file: Path | None) -> tuple[FleetManifest, RoutingTable]:
    """The deployment, with its keys read from `api_key_file` where that is given. Raises ConfigError."""
    manifest, table = read_deployment(deployment_dir)
    if api_key_file is not None:
        unit = msgspec.structs.replace(table.front, api_key_file=str(api_key_file))
        table = msgspec.structs.replace(table, front=unit)
    return manifest, table
