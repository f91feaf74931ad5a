"""What the pods of one Deployment say of the server that they run. Pure.

A pod is a plain object of the API (`v1/Pod`), as it was listed or watched; what it lacks or gets wrong is as if it
were not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launcher.supervise.scheduled import Seen
from launcher.supervise.scheduled.lease import Object

HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"})
"""Why a container does not start that waiting does not change: somebody must change the cluster."""
_CONTAINERS = ("llama-server", "service")
"""As `launcher.render` calls them; a mesh may put others beside them."""
_DONE = ("Succeeded", "Failed")


def seen(pods: Iterable[Object]) -> Seen:
    """Where the server of `pods` is.

    Two can be there at once: one that ends, perhaps for ever on a node that is lost, and its successor.
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


def names_by_label(pods: Iterable[Object], label: str) -> dict[str, list[Object]]:
    """`pods` by what they have as `label`."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        name = _map(pod, "metadata", "labels").get(label)
        if isinstance(name, str):
            found.setdefault(name, []).append(pod)
    return found


def uid(pod: Object) -> str:
    """Of one object that was ever made in the cluster."""
    return str(_map(pod, "metadata").get("uid", ""))


def replicas(scale: Object) -> int:
    """How many pods a Scale asks for; none where it does not say."""
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
    """The status of the server's container; of the first where none has its name, empty while there is none."""
    found = status.get("containerStatuses")
    known = [one for one in (found if isinstance(found, list) else ()) if isinstance(one, Mapping)]
    return next((one for one in known if one.get("name") in _CONTAINERS), known[0] if known else {})


def _age(pod: Object) -> tuple[str, str]:
    """Later ones sort after earlier ones; of one second by their identity, so that it is the same one each time."""
    return str(_map(pod, "metadata").get("creationTimestamp", "")), uid(pod)


def _code(container: Object) -> int | None:
    code = container.get("exitCode")
    return code if isinstance(code, int) else None


def _words(thing: Object, otherwise: str) -> str:
    """Reason and message of a status, on one line."""
    reasons = [str(thing[key]) for key in ("reason", "message") if thing.get(key)]
    return " ".join(": ".join(reasons).split())[:300] or otherwise


def _map(thing: Object, *path: str) -> Object:
    """What is below `path`; empty where nothing, or something else, is there."""
    for key in path:
        inner = thing.get(key)
        if not isinstance(inner, Mapping):
            return {}
        thing = inner
    return thing
