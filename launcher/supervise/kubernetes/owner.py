"""Processes as Kubernetes pods: Deployments scaled by the runtime that leads, pods watched. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.base.addresses import address_text
from launcher.ir.fleet import ClusterUnit, FleetManifest, ServerUnit, ServiceUnit
from launcher.ir.live import Manager
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import Rejected, ServerRecord, new_record
from launcher.supervise.kubernetes.api import MERGE, ApiServer, in_cluster_url
from launcher.supervise.kubernetes.seen import pods_by_label, replicas, seen, uid
from launcher.supervise.owner import Ending, Watcher
from launcher.supervise.scheduled import (
    CALL_SHARE,
    Election,
    ScheduledOwner,
    ScheduledProcess,
    SchedulerError,
    Seen,
    identity,
)
from launcher.supervise.scheduled.lease import Object, version
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_LIST_AGAIN_S = 0.25
_AT_ONCE = 16
"""Limit of parallel calls about Deployments."""


class Pods(ScheduledOwner):
    """The `launcher.supervise.owner.ProcessOwner` of a Kubernetes cluster."""

    manager: Manager = "kubernetes"
    pause_s = 0.05
    pause_max_s = 2.0

    def __init__(self, cluster: ClusterUnit, manifest: FleetManifest, *, port: int, url: str = "") -> None:
        """`port`: of our front, for the fronts that wait. `url`: of the API server; default: that of this pod."""
        self._cluster = cluster
        space = f"namespaces/{cluster.namespace}"
        self._scales = f"/apis/apps/v1/{space}/deployments/%s/scale"
        self._list = f"/api/v1/{space}/pods"
        self._limit_s = cluster.lease_s * CALL_SHARE
        self._api = ApiServer(url or in_cluster_url(), Path(cluster.account_dir), limit_s=self._limit_s)
        host, pod = os.environ.get("POD_IP", "127.0.0.1"), os.environ.get("POD_NAME", "front")
        election = Election(
            self._api,
            f"/apis/coordination.k8s.io/v1/{space}/leases/{cluster.lease}",
            identity(address_text(host, port), pod, secrets.token_hex(4)),
            cluster.lease_s,
        )
        everyone: tuple[ServerUnit | ServiceUnit, ...] = (*manifest.servers, *manifest.services)
        super().__init__(election, {unit.name: unit.exclusive for unit in everyone if unit.exclusive is not None})
        self._pods: dict[str, Object] = {}
        """Pods by uid."""
        self._seen: dict[str, Seen] = {}
        """State by Deployment that has pods."""
        self._unanswered_until: dict[str, float] = {}
        """Until when an unanswered change may still be made (loop time), by server."""
        self._synced = asyncio.Event()
        self._knows_scales = False

    # --- the runtime's --------------------------------------------------------------------------------------

    def adopt(self, record: ServerRecord, watcher: Watcher) -> ScheduledProcess | None:
        """The process of `record`, which `living` found; it may still be starting."""
        return self.attach(record.name, watcher)

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """Servers that have pods; the first time, also those scaled up without a pod yet. None where another leads."""
        if not self.election.leads:
            return [], []
        await self.known()
        asked: set[str] = set()
        if self.election.leads and not self._knows_scales:
            asked = await self._scaled_up([name for name in specs if name in self._cluster.deployments])
            self._knows_scales = True
        if not self.election.leads:
            return [], []
        there = [n for n in specs if n in asked or self.now(n).stage in ("coming", "running", "over")]
        return [new_record(specs[n], self._cluster.namespace, "cluster", "", 0) for n in there], []

    # --- a process's ----------------------------------------------------------------------------------------

    def now(self, name: str) -> Seen:
        """See `ScheduledOwner`."""
        return self._seen.get(self._cluster.deployments.get(name, ""), Seen(stage="none"))

    async def until_gone(self, name: str) -> None:
        """See `ScheduledOwner`. The watch may be behind: the pods are listed once more."""
        label = f"{self._cluster.label}={self._cluster.deployments[name]}"
        await self.known()
        while True:
            await self.wait_while(lambda: self.now(name).stage != "none")
            with contextlib.suppress(SchedulerError):
                listed = await self._api.ask("GET", self._list, query={"labelSelector": label})
                if seen(listed.get("items") or ()).stage == "none":
                    return
            await asyncio.sleep(_LIST_AGAIN_S)

    async def ending(self, name: str, how: Seen | None) -> Ending:  # noqa: ARG002 - the interface's
        """See `ScheduledOwner`."""
        if how is None:
            return Ending(code=None)
        return Ending(code=how.code, refused=_diagnosis(how))

    # --- following ------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop watching, and close all connections."""
        await super().close()
        await self._api.close()

    async def follow_forever(self) -> None:
        """List, watch, and list again whenever the watch cannot go on from where it was (410, a lost connection)."""
        selector = {"labelSelector": ",".join(f"{k}={v}" for k, v in sorted(self._cluster.selector.items()))}
        pause_s, failure = self.pause_s, ""
        while True:
            try:
                listed = await self._api.ask("GET", self._list, query=selector)
                items = listed.get("items")
                self._pods = {uid(pod): pod for pod in (items if isinstance(items, list) else ())}
                self._take()
                self._synced.set()
                at, pause_s, failure = version(listed), self.pause_s, ""
                while True:
                    async for event in self._api.watch(self._list, {**selector, "resourceVersion": at}):
                        at = self._apply_event(event) or at
                    await asyncio.sleep(self.pause_s)
            except SchedulerError as error:
                await asyncio.sleep(pause_s)
                if error.status != 410:
                    pause_s = min(self.pause_max_s, pause_s * 2)
                    if str(error) != failure:
                        failure = str(error)
                        _LOG.warning("the pods of this fleet: %s", error)

    def _apply_event(self, event: Mapping[str, Any]) -> str:
        """Take in one event of the watch; returns the version to go on from."""
        pod = event.get("object")
        if not isinstance(pod, dict):
            return ""
        if event.get("type") == "DELETED":
            self._pods.pop(uid(pod), None)
        elif event.get("type") in ("ADDED", "MODIFIED"):
            self._pods[uid(pod)] = pod
        self._take()
        return version(pod)

    def _take(self) -> None:
        self._seen = {
            name: seen(pods) for name, pods in pods_by_label(self._pods.values(), self._cluster.label).items()
        }
        self.notify_processes()

    async def known(self) -> None:
        """See `ScheduledOwner`."""
        self.follow()
        await self._synced.wait()

    # --- scaling --------------------------------------------------------------------------------------------

    async def scale_once(self, name: str, wanted: int) -> None:
        """Read the scale, and change it if it differs. Raises SchedulerError."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._unanswered_until.get(name, 0.0) - loop.time()))
        path = self._scales % self._cluster.deployments[name]
        scale = await self._api.ask("GET", path)
        if replicas(scale) == wanted:
            return
        self.require_leading()
        self._unanswered_until[name] = loop.time() + 2 * self._limit_s
        change = {"metadata": {"resourceVersion": version(scale)}, "spec": {"replicas": wanted}}
        try:
            await self._api.ask("PATCH", path, body=change, kind=MERGE)
        except SchedulerError as error:
            if error.status:
                del self._unanswered_until[name]  # it was answered: it is not made
            raise
        del self._unanswered_until[name]

    async def _scaled_up(self, names: Sequence[str]) -> set[str]:
        """The servers of `names` that are scaled up, whether the cluster has made a pod yet or not."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def is_asked(name: str) -> bool:
            pause_s = self.pause_s
            while self.election.leads:
                try:
                    async with limit:
                        return replicas(await self._api.ask("GET", self._scales % self._cluster.deployments[name])) > 0
                except SchedulerError as error:
                    _LOG.warning("%s: %s", name, error)
                    if not error.is_transient:
                        return False
                await asyncio.sleep(pause_s)
                pause_s = min(self.pause_max_s, pause_s * 2)
            return False

        answers = await asyncio.gather(*(is_asked(name) for name in names))
        return {name for name, asked in zip(names, answers, strict=True) if asked}


def _diagnosis(how: Seen) -> Diagnosis:
    if how.oom_killed:
        cause = "its container took more memory than its limit, and was killed"
        return Diagnosis(code="supervise/oom-killed", cause=cause, remedy="plan more memory, or a smaller context")
    if how.hopeless:
        remedy = "`kubectl describe` its pod and Deployment; `kubectl apply -k` puts objects and rights in place"
        return Diagnosis(code="supervise/pod-refused", cause=how.why, remedy=remedy)
    shown = f" (exit code {how.code})" if how.code is not None else ""
    cause = f"its pod ended: {how.why or 'nobody says why'}{shown}"
    return Diagnosis(code="supervise/pod-ended", cause=cause, remedy="`kubectl logs` of its Deployment says why")
