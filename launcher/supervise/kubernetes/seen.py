"""State of a server, from the pods of its Deployment. Pure.

A pod is a plain object of the API (`v1/Pod`), as it was listed or watched; a field that is malformed counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launcher.supervise.scheduled import Seen
from launcher.supervise.scheduled.lease import Object

HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"})
"""Reasons why a container does not start that waiting does not change: the cluster must be changed."""
_CONTAINERS = ("llama-server", "service")
"""Container names that `launcher.render` writes; a service mesh may add others."""
_DONE = ("Succeeded", "Failed")


def seen(pods: Iterable[Object]) -> Seen:
    """State of the server in `pods`.

    There can be two at once: one that is terminating, perhaps for ever on a lost node, and its successor.
    """
    everyone = sorted(pods, key=_age)
    holding = [pod for pod in everyone if _map(pod, "status").get("phase") not in _DONE]
    lasting = [pod for pod in holding if not _map(pod, "metadata").get("deletionTimestamp")]
    if lasting:
        return _of_pod(lasting[-1])
    if holding:
        return Seen(stage="ending", why="its pod ends")
    status = _map(everyone[-1], "status") if everyone else {}
    container = _map(_container(status), "state", "terminated")
    return Seen(
        stage="none",
        why=_words(status, "its pod was ended"),
        code=_code(container),
        oom_killed=container.get("reason") == "OOMKilled",
    )


def pods_by_label(pods: Iterable[Object], label: str) -> dict[str, list[Object]]:
    """`pods` by their value of `label`."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        name = _map(pod, "metadata", "labels").get(label)
        if isinstance(name, str):
            found.setdefault(name, []).append(pod)
    return found


def uid(pod: Object) -> str:
    """The uid of an object, unique in the cluster for all time."""
    return str(_map(pod, "metadata").get("uid", ""))


def replicas(scale: Object) -> int:
    """Number of pods that a Scale asks for; 0 where it has none."""
    wanted = _map(scale, "spec").get("replicas")
    return wanted if isinstance(wanted, int) else 0


def _of_pod(pod: Object) -> Seen:
    status = _map(pod, "status")
    container = _container(status)
    restarts = container.get("restartCount")
    run = f"{uid(pod)}/{restarts if isinstance(restarts, int) else 0}"
    if isinstance(_map(container, "state").get("running"), Mapping):
        return Seen(stage="running", run=run)
    waits = _map(container, "state", "waiting")
    ended = _map(container, "state", "terminated") or _map(container, "lastState", "terminated")
    if ended:
        why = _words(ended, "its container ended")
        return Seen(stage="over", why=why, code=_code(ended), oom_killed=ended.get("reason") == "OOMKilled")
    if waits:
        return Seen(stage="coming", why=_words(waits, ""), hopeless=waits.get("reason") in HOPELESS)
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, Mapping) and condition.get("type") == "PodScheduled":
            return Seen(stage="coming", why=_words(condition, ""))
    return Seen(stage="coming")


def _container(status: Object) -> Object:
    """Status of the server's container; of the first one where none has its name, empty while there is none."""
    found = status.get("containerStatuses")
    known = [one for one in (found if isinstance(found, list) else ()) if isinstance(one, Mapping)]
    return next((one for one in known if one.get("name") in _CONTAINERS), known[0] if known else {})


def _age(pod: Object) -> tuple[str, str]:
    """Sort key: later pods sort after earlier ones; those of the same second by uid, so that the order is stable."""
    return str(_map(pod, "metadata").get("creationTimestamp", "")), uid(pod)


def _code(container: Object) -> int | None:
    code = container.get("exitCode")
    return code if isinstance(code, int) else None


def _words(thing: Object, otherwise: str) -> str:
    """Reason and message of a status, on one line."""
    reasons = [str(thing[key]) for key in ("reason", "message") if thing.get(key)]
    return " ".join(": ".join(reasons).split())[:300] or otherwise


def _map(thing: Object, *path: str) -> Object:
    """The object at `path`; empty where there is none."""
    for key in path:
        inner = thing.get(key)
        if not isinstance(inner, Mapping):
            return {}
        thing = inner
    return thing
