"""Where a server is, by its pods: whatever they look like, in whatever order they are listed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervise.kubernetes.seen import HOPELESS, pods_by_label, replicas, seen, uid
from launcher.supervise.scheduled.lease import version

_STATES: tuple[dict[str, Any], ...] = (
    {},
    {"state": {"waiting": {"reason": "ContainerCreating"}}},
    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
    {"state": {"waiting": {"reason": "InvalidImageName"}}},
    {"state": {"running": {"startedAt": "x"}}},
    {"state": {"running": {}}, "restartCount": 3},
    {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
    {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1}}},
)


def pod(number: int, phase: str = "Running", container: dict[str, Any] | None = None, *, ends: bool = False) -> Any:
    """The `number`th pod that was made."""
    meta = {"uid": f"u{number}", "creationTimestamp": f"2026-01-01T00:00:{number:02d}Z", "labels": {"c": "x"}}
    status = {"phase": phase, "containerStatuses": [container] if container else []}
    return {"metadata": meta | ({"deletionTimestamp": "2026"} if ends else {}), "status": status}


_PODS = st.lists(
    st.builds(
        pod,
        st.integers(0, 59),
        st.sampled_from(("Pending", "Running", "Succeeded", "Failed", "Unknown")),
        st.sampled_from(_STATES),
        ends=st.booleans(),
    ),
    max_size=5,
    unique_by=uid,
)


@given(_PODS, st.randoms(use_true_random=False))
def test_of_many_pods(pods: list[Any], random: Any) -> None:
    """What holds a node's memory is never `none`; it is the newest pod that nobody ends which counts, in any order."""
    found = seen(pods)
    mixed = list(pods)
    random.shuffle(mixed)
    assert seen(mixed) == found
    holding = [p for p in pods if p["status"]["phase"] not in ("Succeeded", "Failed")]
    lasting = [p for p in holding if "deletionTimestamp" not in p["metadata"]]
    assert (found.stage == "none") == (not holding)
    assert (found.stage == "ending") == bool(holding and not lasting)
    if lasting:
        newest = max(lasting, key=lambda p: p["metadata"]["creationTimestamp"])
        assert found == seen([newest])
        assert found.stage != "running" or found.run.startswith(f"{uid(newest)}/")
    assert found.stage == "running" or not found.run


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("metadata", "status", "phase", "uid", "containerStatuses", "state", "running", "conditions")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from(("metadata", "status", "spec")), _JUNK), max_size=3))
def test_whatever_the_api_says(pods: list[Any]) -> None:
    """No object breaks us; what is not there is not there."""
    assert seen(pods).stage in ("none", "coming", "running", "over", "ending")
    pods_by_label(pods, "c")
    for found in pods:
        uid(found), version(found), replicas(found)


@pytest.mark.parametrize(
    ("container", "stage", "code", "why"),
    [
        ({}, "coming", None, ""),
        (_STATES[1], "coming", None, "ContainerCreating"),
        (_STATES[2], "coming", None, "ImagePullBackOff: no such image"),
        (_STATES[4], "running", None, ""),
        (_STATES[6], "over", 137, "OOMKilled"),
        (_STATES[7], "over", 1, "its container ended"),
    ],
)
def test_one_pod(container: dict[str, Any], stage: str, code: int | None, why: str) -> None:
    """Each state of a container, in the cluster's own words."""
    found = seen([pod(1, "Pending", container)])
    assert (found.stage, found.code, found.why) == (stage, code, why)
    assert found.oom_killed == (code == 137)


def test_what_waiting_does_not_change() -> None:
    """An image that has no name is none later either; one that is not there may come."""
    for reason in ("ImagePullBackOff", *HOPELESS):
        found = seen([pod(1, "Pending", {"state": {"waiting": {"reason": reason}}})])
        assert found.hopeless == (reason in HOPELESS)
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    waits = {"metadata": {"uid": "a"}, "status": {"phase": "Pending", "conditions": conditions}}
    assert seen([waits]).why == "Unschedulable: 0/3 nodes"
    evicted = {"metadata": {"uid": "a"}, "status": {"phase": "Failed", "reason": "Evicted", "message": "disk"}}
    assert (seen([evicted]).stage, seen([evicted]).why) == ("none", "Evicted: disk")


def test_another_run_is_another_process() -> None:
    """A container that was started again, and a new pod, are not what was there before."""
    first = seen([pod(1, container=_STATES[4])])
    again = seen([pod(1, container=_STATES[5])])
    other = seen([pod(1, container=_STATES[4], ends=True), pod(2, container=_STATES[4])])
    assert len({first.run, again.run, other.run}) == 3


@pytest.mark.parametrize("name", ["llama-server", "service"])
def test_ours_among_what_a_mesh_puts_beside_it(name: str) -> None:
    """A proxy that is listed first does not say whether the server or service runs."""
    proxy = {"name": "proxy", "state": {"running": {}}}
    both = pod(1, container=None)
    both["status"]["containerStatuses"] = [proxy, {"name": name, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    assert seen([both]).stage == "coming"
