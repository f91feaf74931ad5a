"""The front alone, for fleets whose processes are run by others. I/O."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from launcher.errors import LaunchError
from launcher.files.state import deployment_state_dir
from launcher.runtime.deployment import read_deployment
from launcher.runtime.host import front_url, notify, signals
from launcher.supervise.events import AnyEvent, FleetReady, RuntimeStarted

_LOG = logging.getLogger("launch.runtime")


async def route_only(deployment_dir: Path, on_event: Callable[[AnyEvent], None], api_key_file: Path | None) -> None:
    """Run the front alone until SIGTERM: the servers are run by others."""
    from launcher import orchestrate, route  # noqa: PLC0415 - late, as above

    manifest, table = read_deployment(deployment_dir, api_key_file=api_key_file)

    def state_dir() -> Path:
        return deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir, create=True)

    front = route.Front(table, route.AskedUpstreams(), orchestrator=orchestrate.Orchestrator(table, state_dir))
    sock = route.bind(front, table.front.host, table.front.port)
    more = route.bind_more(front)
    url = front_url(table)
    shutdown = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        """SIGHUP: read the routes again, or keep the old ones; any other signal ends."""
        if number != signal.SIGHUP:
            shutdown.set()
            return
        try:
            front.replace_table(read_deployment(deployment_dir, api_key_file=api_key_file)[1])
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
            more=more,
            shutdown=shutdown,
            drain_timeout_s=manifest.supervisor.drain_timeout_s,
        )
