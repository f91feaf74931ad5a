"""Where a server is, by what squeue prints and what its job wrote; any text gives an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervise.scheduled import Seen
from launcher.supervise.slurm.queue import Job, Place, by_server, jobs_of, place_of, seen, surplus

PLACE = Place(job="7", run="7.0.1", node="n1", host="10.0.0.1", port=8081, state="up", code=0)


def job(state: str, number: int = 7, why: str = "None", nodes: str = "n1") -> Job:
    """A job of the server `worker`."""
    return Job(id=number, state=state, began="t", nodes=nodes, name="launch:f:worker", server="worker", why=why)


def test_what_squeue_prints() -> None:
    """Jobs of other names are somebody else's, whatever they call themselves."""
    text = "7|RUNNING|t|n1|launch:f:worker|worker|None\n\n8|PENDING|N/A||mine|worker|Resources\nslurm: error: x|y\n"
    found = jobs_of(text + "9|PENDING|N/A||launch:f:worker|other|(a|b)\nx|1|2|3|4|5|6\n")
    assert [one.id for one in found] == [7, 8, 9]
    assert found[2].why == "(a|b)"
    assert by_server(found, {"worker": "launch:f:worker"}) == {"worker": [job("RUNNING")]}


@pytest.mark.parametrize(
    ("state", "why", "stage", "hopeless"),
    [
        ("PENDING", "Resources", "coming", False),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "coming", False),
        ("PENDING", "JobHeldUser", "coming", True),
        ("PENDING", "launch failed requeued held", "coming", True),
        ("PENDING", "BadConstraints", "coming", True),
        ("CONFIGURING", "None", "coming", False),
        ("COMPLETING", "None", "ending", False),
        ("A_STATE_OF_LATER", "None", "ending", False),
        ("SUSPENDED", "None", "over", False),
        ("OUT_OF_MEMORY", "None", "none", False),
        ("NODE_FAIL", "None", "none", False),
    ],
)
def test_states(state: str, why: str, stage: str, hopeless: bool) -> None:
    """What each state of Slurm is to us."""
    found = seen([job(state, why=why)], {7: PLACE})
    assert (found.stage, found.hopeless, found.oom_killed) == (stage, hopeless, state == "OUT_OF_MEMORY")


def test_where_it_runs() -> None:
    """A place counts while its job runs on that node, and says another process whenever it is one."""
    here = seen([job("RUNNING")], {7: PLACE})
    assert here == Seen(stage="running", run="7/t/7.0.1", address=("10.0.0.1", 8081))
    for places in ({}, {8: PLACE}):
        assert seen([job("RUNNING")], places).stage == "coming"
    assert seen([job("RUNNING", nodes="n2")], {7: PLACE}).stage == "coming"
    ended = place_of(b'{"job":"7","run":"7.0.1","node":"n1","host":"h","port":1,"state":"ended","code":137}')
    assert ended is not None
    assert seen([job("RUNNING")], {7: ended}) == Seen(stage="over", why="its process has ended", code=137)
    assert seen([job("FAILED")], {7: ended}).code == 137
    assert seen([], {}) == Seen(stage="none")
    for text in (
        b"",
        b"{}",
        b'{"job":"7"',
        b"\xff",
        b'{"job":"7","run":"","node":"","host":"","port":1,"state":"","code":0}',
    ):
        assert place_of(text) is None


def test_one_too_many() -> None:
    """Of several jobs of a server the one that runs is kept, else the oldest."""
    assert surplus([job("PENDING", 1), job("RUNNING", 2), job("PENDING", 3), job("FAILED", 4)]) == [1, 3]
    assert surplus([job("PENDING", 1), job("PENDING", 2)]) == [2]
    assert surplus([job("RUNNING", 1), job("CANCELLED", 2)]) == []
    assert seen([job("PENDING", 1), job("RUNNING", 7)], {7: PLACE}).stage == "running"


@given(st.text(), st.binary())
def test_any_text(text: str, raw: bytes) -> None:
    """Whatever is printed or written, it is read or passed over."""
    place = place_of(raw)
    seen(jobs_of(text), {} if place is None else {7: place})
