"""The project memory: exactly once, append-only, killed at every statement, exported, pruned, forgotten."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import HostError
from launcher.orchestrate import FILE_NAME, ProjectMemory, export_project, forget_project, list_projects
from launcher.orchestrate.cycle import Commit
from launcher.orchestrate.memory import OpenGeneration
from launcher.orchestrate.retention import Moment, next_horizon
from launcher.orchestrate.verdict import Verdict

FIELDS = {"digest": "d", "model": "coder", "domain": "code", "policy": "block_by_block"}
VERDICTS = (Verdict(kind="fail", reason="no", correction="do", server="judge", draft="a draft"), Verdict(kind="pass"))


def block(seq: int) -> Commit:
    """A block with two verdicts; the fifth is the last."""
    return Commit(seq=seq, text=f"block {seq}", verdicts=VERDICTS, ends="stop" if seq == 4 else "")


def work(memory: ProjectMemory, generation: str = "g") -> OpenGeneration:
    """Five blocks, as the runtime writes them, from where the generation stands."""
    opened = memory.open(generation, "", "p", **FIELDS)
    for seq in range(len(opened.committed), 5):
        memory.note(opened.project, opened.id, f"[FAIL] block {seq + 1}: no")
        memory.commit(opened, block(seq), "coder")
    memory.end(opened, "complete")
    return opened


def checked(memory: ProjectMemory) -> list[int]:
    """Committed blocks; each with exactly its verdicts and its entry in the journal."""
    db = memory._db
    seqs = [row[0] for row in db.execute("SELECT seq FROM block ORDER BY position")]
    assert seqs == list(range(len(seqs)))
    assert [r[0] for r in db.execute("SELECT seq FROM verdict ORDER BY id")] == [s for s in seqs for _ in VERDICTS]
    commits = db.execute("SELECT json_extract(data, '$.seq') FROM journal WHERE kind = 'commit' ORDER BY seq")
    assert [r[0] for r in commits] == seqs
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return seqs


def test_a_block_is_committed_once(tmp_path: Path) -> None:
    """The same block again, and one that is not the next, are refused and leave nothing behind."""
    memory = ProjectMemory(tmp_path / FILE_NAME)
    opened = memory.open("g", "", "p", **FIELDS)
    memory.commit(opened, block(0), "coder")
    for seq in (0, 2):
        with pytest.raises(ValueError, match="not the next"):
            memory.commit(opened, block(seq), "coder")
    assert checked(memory) == [0]
    memory.close()


def test_killed_at_every_statement(tmp_path: Path) -> None:
    """Kill -9 before the n-th SQL statement of a five-block generation, for every n: nothing lost, nothing doubled.

    What `commit` returned for is there; the next start says `interrupted`, goes on from there and completes.
    """
    statement = 0
    ProjectMemory(tmp_path / "empty").close()
    while True:
        statement += 1
        path = tmp_path / f"{statement}.sqlite3"
        shutil.copy(tmp_path / "empty", path)
        returned_read, returned_write = os.pipe()
        child = os.fork()
        if child == 0:
            _die_at(statement, path, returned_write)
        os.close(returned_write)
        with os.fdopen(returned_read, "rb") as pipe:
            returned = len(pipe.read())
        _, status = os.waitpid(child, 0)
        memory = ProjectMemory(path)
        memory._db.execute("PRAGMA synchronous = OFF")  # faster; kill -9 is no power cut
        committed = len(checked(memory))
        assert committed in (returned, returned + 1)
        finished = not os.WIFSIGNALED(status)
        state = memory.report("g", "")
        assert state is None or state["status"] == ("complete" if memory.interrupted == 0 else "interrupted")
        work(memory)
        assert checked(memory) == [0, 1, 2, 3, 4]
        assert memory.report("g", "")["status"] == "complete"  # type: ignore[index]
        memory.close()
        if finished:
            break
    assert statement > 60


def _die_at(statement: int, path: Path, returned: int) -> None:
    """Work in this process until the n-th statement, and die there; a byte for every commit that returned."""
    seen = 0

    def count(_: str) -> None:
        """One statement begins."""
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    memory = ProjectMemory(path)
    memory._db.execute("PRAGMA synchronous = OFF")
    memory._db.set_trace_callback(count)
    commit = memory.commit

    def told(opened: OpenGeneration, what: Commit, server: str) -> None:
        """Commit, then say so."""
        commit(opened, what, server)
        os.write(returned, b".")

    memory.commit = told  # type: ignore[method-assign]
    work(memory)
    os._exit(0)


def test_the_journal_only_grows(tmp_path: Path) -> None:
    """Entries can be neither changed nor deleted, by whoever has the file."""
    memory = ProjectMemory(tmp_path / FILE_NAME)
    work(memory)
    for statement in ("UPDATE journal SET data = '{}'", "DELETE FROM journal WHERE seq = 1", "DELETE FROM journal"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            memory._db.execute(statement)
    memory.close()


def test_retention_drops_what_is_old(tmp_path: Path) -> None:
    """After 30 days finished work goes, with notes and journal; what is running or younger stays."""
    now = [1e9]
    memory = ProjectMemory(tmp_path / FILE_NAME, clock=lambda: now[0], ran=lambda: ("boot", now[0]))
    work(memory, "old")
    memory.open("running", "", "p", **FIELDS)
    memory.decided("", "named once", "none", {})
    now[0] += 29 * 86400
    assert memory.prune(30) == 0
    work(memory, "young")
    now[0] += 2 * 86400
    assert memory.prune(30) == 0  # no more than a day's worth a day
    now[0] += 86400
    assert memory.prune(30) == 1
    found = [r[0] for r in memory._db.execute("SELECT id FROM generation ORDER BY id")]
    assert found == ["running", "young"]
    assert [r[0] for r in memory._db.execute("SELECT name FROM project")] == ["p"]
    assert [r[0] for r in memory._db.execute("SELECT DISTINCT generation FROM journal")] == ["young"]
    now[0] += 86400
    assert memory.prune(0) == 0
    now[0] += 86400
    assert memory.prune(0) == 1
    assert [r[0] for r in memory._db.execute("SELECT id FROM generation")] == ["running"]
    memory.close()


def test_a_clock_that_jumps_deletes_nothing(tmp_path: Path) -> None:
    """40 days ahead within one boot: nothing goes; right again: nothing went, and the journal is still protected."""
    at, ran = [1e9], [100.0]
    memory = ProjectMemory(tmp_path / FILE_NAME, clock=lambda: at[0], ran=lambda: ("boot", ran[0]))
    work(memory, "mine")
    assert memory.prune(30) == 0
    at[0], ran[0] = at[0] + 40 * 86400, ran[0] + 60
    assert memory.prune(30) == 0
    at[0], ran[0] = at[0] - 40 * 86400, ran[0] + 60
    assert memory.prune(30) == 0
    assert memory.report("mine", "") is not None
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        memory._db.execute("DELETE FROM journal")
    memory.close()


def test_a_wrong_clock_over_many_starts_costs_a_day(tmp_path: Path) -> None:
    """The machine starts 40 days ahead, and the runtime is started again and again: the oldest day goes, no more."""
    path, now = tmp_path / FILE_NAME, 1e9
    memory = ProjectMemory(path, clock=lambda: now, ran=lambda: ("first", 10))
    work(memory, "oldest")
    memory.close()
    now += 5 * 86400
    memory = ProjectMemory(path, clock=lambda: now, ran=lambda: ("first", 10 + 5 * 86400))
    work(memory, "younger")
    memory.prune(30)
    memory.close()
    for start in range(20):
        memory = ProjectMemory(path, clock=lambda: now + 90 * 86400, ran=lambda at=start: ("second", 20 + at))  # type: ignore[misc]
        memory.prune(30)
        memory.close()
    memory = ProjectMemory(path, clock=lambda: now, ran=lambda: ("third", 20))
    assert memory.report("oldest", "") is None
    assert memory.report("younger", "") is not None
    memory.close()


TIMES = st.floats(0, 4e9)
MOMENTS = st.builds(
    Moment,
    wall=TIMES,
    boot=st.sampled_from("ab"),
    running=st.floats(0, 1e8),
)


@given(last=st.none() | MOMENTS, now=MOMENTS, oldest=TIMES, horizon=TIMES, days=st.floats(0, 999))
def test_no_clock_deletes_more_than_a_day(
    last: Moment | None, now: Moment, oldest: float, horizon: float, days: float
) -> None:
    """Whatever the clocks say: never younger than `days`, never more than a day beyond what went or is."""
    found = next_horizon(last, now, oldest=oldest, horizon=horizon, days=days)
    if found is not None:
        assert found <= now.wall - days * 86400
        assert found <= max(oldest, horizon) + 86400


def test_export_and_forget(tmp_path: Path) -> None:
    """Everything of a project is exported beside its writer; forgetting takes its journal too, and no other's."""
    path = tmp_path / FILE_NAME
    memory = ProjectMemory(path)
    work(memory)
    memory.decided("", "p", "x", {"model": "coder"})
    memory.open("h", "alice", "p", **FIELDS)
    exported = export_project(path, "", "p")
    assert exported is not None
    lines = [entry["line"] for entry in exported]
    assert {kind: lines.count(kind) for kind in dict.fromkeys(lines)} == {
        "project": 1,
        "generation": 1,
        "block": 5,
        "verdict": 10,
        "note": 6,
        "journal": 8,
    }
    assert exported[-1]["data"] == {"model": "coder"}
    assert [(p.owner, p.name, p.blocks) for p in list_projects(path)] == [("", "p", 5), ("alice", "p", 0)]
    assert forget_project(path, "", "p")
    assert not forget_project(path, "", "p")
    assert export_project(path, "", "p") is None
    assert [(p.owner, p.name) for p in list_projects(path)] == [("alice", "p")]
    assert memory._db.execute("SELECT count(*) FROM journal").fetchone() == (1,)
    memory.close()


def test_owners_are_apart(tmp_path: Path) -> None:
    """A generation of one key is neither resumed nor reported with another."""
    memory = ProjectMemory(tmp_path / FILE_NAME)
    work(memory)
    assert memory.report("g", "alice") is None
    assert memory.open("g", "alice", "p", **FIELDS).known == "other"
    memory.close()


@pytest.mark.parametrize("content", [b"no database at all, but a text of some length" * 30, None])
def test_a_memory_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    """A broken file, and a directory in its place: a finding that says what to do."""
    path = tmp_path / FILE_NAME
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(HostError) as caught:
        ProjectMemory(path)
    assert caught.value.findings[0].code == "orchestrate/memory-unusable"


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_memory_holds_nobody_up(tmp_path: Path) -> None:
    """Neither the runtime nor who reads beside it."""
    os.mkfifo(tmp_path / FILE_NAME)
    for use in (ProjectMemory, list_projects):
        with pytest.raises(HostError):
            use(tmp_path / FILE_NAME)


def test_a_memory_of_another_version(tmp_path: Path) -> None:
    """It is left alone."""
    path = tmp_path / FILE_NAME
    memory = ProjectMemory(path)
    memory._db.execute("PRAGMA user_version = 7")
    memory.close()
    with pytest.raises(HostError, match="version 7"):
        ProjectMemory(path)


def test_the_file_is_private(tmp_path: Path) -> None:
    """Nobody else reads what was written."""
    ProjectMemory(tmp_path / FILE_NAME).close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
