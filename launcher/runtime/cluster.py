"""The runtime on Kubernetes or Slurm: one of several fronts leads, the others relay their clients to it. I/O."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

from launcher.base.addresses import address_text
from launcher.ir.fleet import ClusterUnit, FleetManifest, SlurmUnit
from launcher.route.doors import listening_socket
from launcher.runtime.fleet import Runtime, UnitsOptions
from launcher.runtime.relay import Relay
from launcher.supervise import ProcessOwner
from launcher.supervise.kubernetes import Pods
from launcher.supervise.slurm import Jobs


class ClusterRuntime(Runtime):
    """One of several fronts. It waits until it leads, and ends when it no longer does; it is then started again."""

    _scheduler: Pods | Jobs
    _give_back_task: asyncio.Task[None] | None = None

    def _make_owner(self, units: UnitsOptions | None) -> ProcessOwner:
        del units
        front, slurm, cluster = self._table.front, self._manifest.slurm, self._manifest.cluster
        if isinstance(slurm, SlurmUnit):
            anywhere = front.host in ("0.0.0.0", "::")  # noqa: S104 - compared with
            host = socket.gethostname() if anywhere else front.host
            self._scheduler = Jobs(slurm, self._manifest, address=address_text(host, front.port))
        else:
            assert isinstance(cluster, ClusterUnit)  # noqa: S101 - `in_cluster` says so
            self._scheduler = Pods(cluster, self._manifest, port=front.port)
        return self._scheduler

    def _tell_owner(self, manifest: FleetManifest) -> None:
        """Pass `manifest` on for new job scripts; Kubernetes objects are applied by others."""
        if isinstance(self._scheduler, Jobs) and isinstance(manifest.slurm, SlurmUnit):
            self._scheduler.take_over(manifest)

    async def _run_with_control(self, control_sock: socket.socket, control_address: Path) -> None:
        """Wait for the lease, run the fleet until told to end or the lease is lost, then give the lease back."""
        election = self._scheduler.election
        unit = self._table.front
        relay = Relay(election.leader, encrypted=unit.tls_cert_file is not None)
        running = asyncio.create_task(election.run())
        try:
            await relay.open(listening_socket(unit))
            await self._first(election.elected)
            self._listening = relay.hand_over()
            if self._shutdown.is_set():
                self._listening.close()
                return
            watching = asyncio.create_task(self._end_when_lost(election.lost))
            try:
                await super()._run_with_control(control_sock, control_address)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await (self._give_back_task or election.give_back())
            await relay.end()
            await self._scheduler.close()

    def _on_signal(self, number: signal.Signals) -> None:
        """Give the lease back at once: the next front leads while our last requests are answered."""
        super()._on_signal(number)
        self._give_back_task = asyncio.get_running_loop().create_task(self._scheduler.election.give_back())

    async def _first(self, event: asyncio.Event) -> None:
        waits = [asyncio.create_task(one.wait()) for one in (event, self._shutdown)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _end_when_lost(self, lost: asyncio.Event) -> None:
        """End as after a signal when the lease is lost."""
        await lost.wait()
        if not self._shutdown.is_set():
            self._on_signal(signal.SIGTERM)
