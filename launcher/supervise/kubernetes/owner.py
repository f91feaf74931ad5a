"""Processes that are a cluster's: Deployments scaled by the runtime that leads, pods watched. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.ir.fleet import ClusterUnit, FleetManifest
from launcher.ir.live import Manager
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.identity import Rejected, ServerRecord
from launcher.supervise.kubernetes.api import MERGE, ApiServer, in_cluster_url
from launcher.supervise.kubernetes.seen import Object, names_by_label, replicas, seen, uid, version
from launcher.supervise.marks import new_record
from launcher.supervise.owner import Ending, Orphan
from launcher.supervise.scheduled import CALL, Election, ScheduledProcess, SchedulerError, Seen, identity
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0
_LIST_AGAIN_S = 0.25
_AT_ONCE = 16
"""Deployments that are asked about at the same time."""


class Pods:
    """See `launcher.supervise.owner.ProcessOwner`. Nothing is changed but by who leads (`election`)."""

    manager: Manager = "kubernetes"
    outlives = True
    local = False

    def __init__(self, cluster: ClusterUnit, manifest: FleetManifest, *, port: int, url: str = "") -> None:
        """`port`: of our front, for the fronts that wait. `url`: of the API server; by default a pod's own."""
        self._cluster = cluster
        space = f"namespaces/{cluster.namespace}"
        self._scales = f"/apis/apps/v1/{space}/deployments/%s/scale"
        self._list = f"/api/v1/{space}/pods"
        self._limit_s = cluster.lease_s * CALL
        self._api = ApiServer(url or in_cluster_url(), Path(cluster.account_dir), limit_s=self._limit_s)
        host, pod = os.environ.get("POD_IP", "127.0.0.1"), os.environ.get("POD_NAME", "front")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.election = Election(
            self._api,
            f"/apis/coordination.k8s.io/v1/{space}/leases/{cluster.lease}",
            identity(address, pod, secrets.token_hex(4)),
            cluster.lease_s,
        )
        self._groups = {s.name: s.exclusive for s in manifest.servers if s.exclusive is not None}
        self._pods: dict[str, Object] = {}
        """By uid."""
        self._seen: dict[str, Seen] = {}
        """By Deployment that has pods."""
        self._processes: dict[str, ScheduledProcess] = {}
        self._wanted: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._unsure: dict[str, float] = {}
        """Until when a change of whose answer nothing came may yet be made, a time of the loop."""
        self._changed = asyncio.Event()
        self._synced = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._knows_scales = False

    # --- the runtime's --------------------------------------------------------------------------------------

    def start(self, spec: ProcessSpec, level: int, record: ServerRecord) -> ScheduledProcess:
        """Never refuses at once: what the cluster says against it is an end."""
        del level, record  # a Deployment has no smaller way to run
        process = self._attached(spec.name)
        process.begin()
        return process

    def adopt(self, record: ServerRecord) -> ScheduledProcess | None:
        """What `living` found; it may be on its way yet."""
        return self._attached(record.name)

    async def living(self, specs: Mapping[str, ProcessSpec]) -> tuple[list[ServerRecord], list[Rejected]]:
        """What has pods; the first time, also what is asked for and has none yet. Nothing where another leads."""
        if not self.election.leads:
            return [], []
        await self._known()
        asked: set[str] = set()
        if self.election.leads and not self._knows_scales:
            asked = await self._asked_for([name for name in specs if name in self._cluster.deployments])
            self._knows_scales = True
        if not self.election.leads:
            return [], []
        there = [n for n in specs if n in asked or self.now(n).stage in ("coming", "running", "over")]
        return [new_record(specs[n], self._cluster.namespace, "cluster", "", 0) for n in there], []

    async def end(self, records: Sequence[ServerRecord]) -> tuple[Orphan, ...]:
        """Scale them to none, and wait until nothing is left."""

        async def ended(name: str) -> Orphan:
            try:
                await self.scale(name, 0)
                await self.until_gone(name)
            except SchedulerError as error:
                _LOG.error("%s is not ended: %s", name, error)
                return Orphan(name=name, pid=0, outcome="survived")
            return Orphan(name=name, pid=0, outcome="stopped")

        return tuple(await asyncio.gather(*(ended(record.name) for record in records)))

    def keep(self, record: ServerRecord) -> None:
        """The cluster remembers."""

    def forget(self, name: str) -> None:
        """The cluster forgets."""

    def heal(self) -> tuple[str, ...]:
        """Nothing is on our disk."""
        return ()

    async def clear(self, specs: Iterable[ProcessSpec]) -> None:
        """What a pod leaves behind is the cluster's to remove."""

    def log_file(self, name: str) -> Path | None:  # noqa: ARG002 - the interface's
        """With the kubelet."""
        return None

    async def trim_log(self, name: str) -> None:
        """The kubelet has limits of its own."""

    def pss_bytes(self, pid: int) -> int | None:  # noqa: ARG002 - the interface's
        """Of another machine."""
        return None

    # --- a process's ----------------------------------------------------------------------------------------

    def now(self, name: str) -> Seen:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        return self._seen.get(self._cluster.deployments.get(name, ""), Seen(stage="none"))

    async def ask_none_of_group(self, name: str) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        await self._known()
        if self.now(name).stage == "over":  # an earlier run, which the kubelet starts again and again
            await self.scale(name, 0)
        group = self._groups.get(name)
        rivals = [n for n, g in self._groups.items() if g == group and n != name]
        await self._while(
            lambda: self.now(name).stage in ("ending", "over") or any(self.now(r).stage != "none" for r in rivals)
        )

    async def scale(self, name: str, wanted: int) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        self._wanted[name] = wanted
        pause_s = _PAUSE_S
        async with self._turns.setdefault(name, asyncio.Lock()):
            while self._wanted[name] == wanted:
                try:
                    await self._scale_once(name, wanted)
                except SchedulerError as error:
                    if not error.passes:
                        raise
                    if error.status == 409:
                        continue  # somebody changed it meanwhile: it is read again
                    _LOG.warning("%s: %s", name, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(_PAUSE_MAX_S, pause_s * 2)
                else:
                    return

    async def until_gone(self, name: str) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`. What a watch told may be old: it is listed once more."""
        label = f"{self._cluster.label}={self._cluster.deployments[name]}"
        while True:
            await self._while(lambda: self.now(name).stage != "none")
            with contextlib.suppress(SchedulerError):
                listed = await self._api.ask("GET", self._list, query={"labelSelector": label})
                if seen(listed.get("items") or ()).stage == "none":
                    return
            await asyncio.sleep(_LIST_AGAIN_S)

    def leave(self, process: ScheduledProcess) -> None:
        """See `launcher.supervise.scheduled.process.Cluster`."""
        if self._processes.get(process.name) is process:
            del self._processes[process.name]

    async def ending(self, name: str, how: Seen | None) -> Ending:  # noqa: ARG002 - the interface's
        """See `launcher.supervise.scheduled.process.Cluster`."""
        if how is None:
            return Ending(code=None)
        return Ending(code=how.code, refused=_diagnosis(how))

    # --- following ------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Watch the pods from now on."""
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Watch and ask no more."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        await self._api.close()

    async def _follow(self) -> None:
        """List, watch, and list again whenever the watch cannot go on from where it was (410, a broken line)."""
        selector = {"labelSelector": ",".join(f"{k}={v}" for k, v in sorted(self._cluster.selector.items()))}
        pause_s, said = _PAUSE_S, ""
        while True:
            try:
                listed = await self._api.ask("GET", self._list, query=selector)
                items = listed.get("items")
                self._pods = {uid(pod): pod for pod in (items if isinstance(items, list) else ())}
                self._take()
                self._synced.set()
                at, pause_s, said = version(listed), _PAUSE_S, ""
                while True:
                    async for event in self._api.watch(self._list, {**selector, "resourceVersion": at}):
                        at = self._heard(event) or at
                    await asyncio.sleep(_PAUSE_S)
            except SchedulerError as error:
                await asyncio.sleep(pause_s)
                if error.status != 410:
                    pause_s = min(_PAUSE_MAX_S, pause_s * 2)
                    if str(error) != said:
                        said = str(error)
                        _LOG.warning("the pods of this fleet: %s", error)

    def _heard(self, event: Mapping[str, Any]) -> str:
        """Take one event of the watch; the version to go on from."""
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
        """Tell who waits where everybody is now."""
        self._seen = {
            name: seen(pods) for name, pods in names_by_label(self._pods.values(), self._cluster.label).items()
        }
        self._changed.set()
        self._changed = asyncio.Event()
        for process in tuple(self._processes.values()):
            process.look()

    async def _while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`, as far as pods are known."""
        await self._known()
        while holds():
            await self._changed.wait()

    async def _known(self) -> None:
        self.follow()
        await self._synced.wait()

    # --- scaling --------------------------------------------------------------------------------------------

    async def _scale_once(self, name: str, wanted: int) -> None:
        """Read the scale, and change it where it is another. Raises SchedulerError."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._unsure.get(name, 0.0) - loop.time()))
        path = self._scales % self._cluster.deployments[name]
        scale = await self._api.ask("GET", path)
        if replicas(scale) == wanted:
            return
        if not self.election.leads:
            raise SchedulerError(503, "this front does not lead")
        self._unsure[name] = loop.time() + 2 * self._limit_s
        change = {"metadata": {"resourceVersion": version(scale)}, "spec": {"replicas": wanted}}
        try:
            await self._api.ask("PATCH", path, body=change, kind=MERGE)
        except SchedulerError as error:
            if error.status:
                del self._unsure[name]  # it was answered: it is not made
            raise
        del self._unsure[name]

    async def _asked_for(self, names: Sequence[str]) -> set[str]:
        """Of which servers the cluster is asked for a pod, whether it has made one yet or not."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def is_asked(name: str) -> bool:
            pause_s = _PAUSE_S
            while self.election.leads:
                try:
                    async with limit:
                        return replicas(await self._api.ask("GET", self._scales % self._cluster.deployments[name])) > 0
                except SchedulerError as error:
                    _LOG.warning("%s: %s", name, error)
                    if not error.passes:
                        return False
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MAX_S, pause_s * 2)
            return False

        answers = await asyncio.gather(*(is_asked(name) for name in names))
        return {name for name, asked in zip(names, answers, strict=True) if asked}

    def _attached(self, name: str) -> ScheduledProcess:
        process = self._processes[name] = ScheduledProcess(self, name)
        self.follow()
        return process


def _diagnosis(how: Seen) -> Diagnosis:
    """Why it ended, in the cluster's words."""
    if how.oom_killed:
        cause = "its container took more memory than its limit, and was killed"
        return Diagnosis(code="supervise/oom-killed", cause=cause, remedy="plan more memory, or a smaller context")
    if how.hopeless:
        remedy = "`kubectl describe` its pod and Deployment; `kubectl apply -k` puts objects and rights in place"
        return Diagnosis(code="supervise/pod-refused", cause=how.why, remedy=remedy)
    shown = f" (exit code {how.code})" if how.code is not None else ""
    cause = f"its pod ended: {how.why or 'nobody says why'}{shown}"
    return Diagnosis(code="supervise/pod-ended", cause=cause, remedy="`kubectl logs` of its Deployment says why")
