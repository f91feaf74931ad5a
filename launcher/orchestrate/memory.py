"""Project memory: one SQLite database a deployment (WAL), for one writer. I/O: a file.

A project has a state (its committed blocks, in order), a scratchpad (notes on the way) and a journal that only grows.
Every method of `ProjectMemory` is one transaction, or reads only; `Keeper` is for an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from launcher.base.procfs import boot_id
from launcher.errors import Finding, HostError, fault
from launcher.ir.exchange import Refusal
from launcher.orchestrate.cycle import Commit, Ends
from launcher.orchestrate.retention import Moment, next_horizon
from launcher.orchestrate.tables import MIGRATIONS, TABLES, VERSION
from launcher.orchestrate.verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")
FILE_NAME = "memory.sqlite3"
BUSY_MS = 5000
_OLDEST = """
SELECT coalesce(min(at), ?) FROM (
    SELECT min(at) AS at FROM journal UNION SELECT min(at) FROM scratchpad
    UNION SELECT min(updated_at) FROM generation WHERE status <> 'running'
)"""

_DROP_EMPTY = """
DELETE FROM project WHERE created_at < ? AND id NOT IN (
    SELECT project FROM generation UNION SELECT project FROM scratchpad UNION SELECT project FROM journal
)"""
"""Projects of which nothing is left: any client may name a new one with each request."""


class OpenGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that was found or created. `known`: its status before; "" for a new one."""

    id: str
    project: int
    known: str = ""
    model: str = ""
    domain: str = ""
    policy: str = ""
    committed: tuple[str, ...] = ()
    ends: Ends = ""


class ProjectMemory:
    """The database. Not for several threads at once."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        ran: Callable[[], tuple[str, float]] | None = None,
    ) -> None:
        """Opens or makes it; what was running belongs to a runtime that is dead, and is `interrupted` from now on.

        Raises HostError where the file cannot be used.
        """
        self.path = path
        self._clock, self._ran = clock, ran or _machine_ran
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._prepare()
            self.interrupted = self._interrupt()
            self._file = _file_at(path)
        except (OSError, sqlite3.Error) as error:
            raise HostError([unusable(path, str(error))]) from None

    def _prepare(self) -> None:
        """Settings of the connection, and the tables where there are none. Raises HostError for another version."""
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        version = self._one("PRAGMA user_version")
        if version not in (0, VERSION, *MIGRATIONS):
            why = f"it has version {version}, this launch writes version {VERSION}"
            raise HostError([unusable(self.path, why)])
        self._db.execute("CREATE TABLE IF NOT EXISTS looked (wall REAL, boot TEXT, running REAL)")  # at the clock
        changes = TABLES if version == 0 else "".join(MIGRATIONS[v] for v in range(version, VERSION))
        if changes:
            self._db.executescript(f"BEGIN IMMEDIATE; {changes} PRAGMA user_version = {VERSION}; COMMIT;")

    def _interrupt(self) -> int:
        """Mark what a dead runtime was at; how many there were."""
        with self._transaction() as now:
            rows = self._db.execute("SELECT id, project FROM generation WHERE status = 'running'").fetchall()
            for generation, project in rows:
                self._settle(generation, "interrupted", now, code="interrupted", message="the runtime ended")
                self._journal(now, project, generation, "interrupted", {"blocks": self._count(generation)})
        return len(rows)

    def is_gone(self) -> bool:
        """Whether the file was removed or replaced: what is committed now nobody finds again."""
        try:
            return _file_at(self.path) != self._file
        except OSError as error:
            return isinstance(error, FileNotFoundError)  # else it is not known

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[float]:
        """All or nothing; gives the time."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._clock()
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # what happens to a generation

    def open(self, /, generation: str, owner: str, project: str, **fields: str) -> OpenGeneration:
        """Make a generation, or find the one of that id; `fields` are digest, model, domain and policy.

        One that exists keeps its fields, and is set running again only where it is of this owner and digest and not
        running or complete.
        """
        with self._transaction() as now:
            number = self._project(owner, project, now)
            query = "SELECT project, status, digest, model, domain, policy FROM generation WHERE id = ?"
            known = self._row(query, generation)
            if known is None:
                times = {"began_at": now, "updated_at": now}
                self._insert("generation", id=generation, project=number, status="running", **fields, **times)
                self._journal(now, number, generation, "begin", fields)
                return _opened(generation, number, fields)
            if known["project"] != number or known["digest"] != fields["digest"]:
                return OpenGeneration(id=generation, project=number, known="other")
            blocks = self._db.execute(
                "SELECT text, ends FROM block WHERE generation = ? ORDER BY seq", (generation,)
            ).fetchall()
            status = known["status"]
            if status in ("failed", "cancelled", "interrupted"):
                self._settle(generation, "running", now)
                self._journal(now, number, generation, "resume", {"blocks": len(blocks), "was": status})
            return msgspec.structs.replace(
                _opened(generation, number, known),
                known=status,
                committed=tuple(text for text, _ in blocks),
                ends=blocks[-1][1] or ("stop" if status == "complete" else "") if blocks else "",
            )

    def commit(self, opened: OpenGeneration, block: Commit, server: str) -> None:
        """A block and its verdicts. Raises sqlite3.Error, ValueError where it is not the next block."""
        seq, verdicts = block.seq, block.verdicts
        with self._transaction() as now:
            if self._count(opened.id) != seq:
                raise ValueError(f"block {seq} is not the next one")
            more = {"text": block.text, "server": server, "ends": block.ends, "committed_at": now}
            self._insert("block", generation=opened.id, seq=seq, **more)
            self._verdicts(opened.id, seq, verdicts, committed=True)
            self._db.execute("UPDATE generation SET updated_at = ? WHERE id = ?", (now, opened.id))
            data = {"seq": seq, "verdicts": [v.kind for v in verdicts], "characters": len(block.text)}
            self._journal(now, opened.project, opened.id, "commit", data)

    def end(  # noqa: PLR0917  # what an end consists of
        self,
        opened: OpenGeneration,
        status: str,
        code: str = "",
        message: str = "",
        seq: int = 0,
        verdicts: Sequence[Verdict] = (),
    ) -> None:
        """The generation is over: complete, failed, cancelled or interrupted; `verdicts` of a block given up."""
        with self._transaction() as now:
            self._verdicts(opened.id, seq, verdicts, committed=False)
            self._settle(opened.id, status, now, code=code, message=message)
            data: dict[str, Any] = {"blocks": self._count(opened.id)}
            if code:
                data |= {"code": code, "message": message, "verdicts": [v.kind for v in verdicts]}
            self._journal(now, opened.project, opened.id, status, data)

    def keep(self, /, generation: str, owner: str, project: str, answer: Commit, server: str, **fields: str) -> bool:
        """A whole answer that nobody validated; False where the generation exists already: what it has stands."""
        opened = self.open(generation, owner, project, **fields)
        if not opened.known:
            self.commit(opened, answer, server)
            self.end(opened, "complete")
        return not opened.known

    def note(self, project: int, generation: str, text: str) -> None:
        """A line in the project's scratchpad."""
        with self._transaction() as now:
            self._insert("scratchpad", project=project, generation=generation, at=now, text=text)

    def decided(self, owner: str, project: str, generation: str, data: dict[str, Any]) -> None:
        """A routing decision: in the scratchpad and the journal."""
        line = "## Routing decision\n" + ", ".join(f"{key}: {value}" for key, value in data.items())
        with self._transaction() as now:
            number = self._project(owner, project, now)
            self._insert("scratchpad", project=number, generation=generation, at=now, text=line)
            self._journal(now, number, generation, "decision", data)

    def escalated(self, opened: OpenGeneration, data: dict[str, Any]) -> None:
        """A stronger worker goes on: in the journal."""
        with self._transaction() as now:
            self._journal(now, opened.project, opened.id, "escalation", data)

    def _project(self, owner: str, name: str, now: float) -> int:
        """The project's number; it is made on its first use."""
        self._db.execute(
            "INSERT INTO project (owner, name, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (owner, name, now)
        )
        return int(self._one("SELECT id FROM project WHERE owner = ? AND name = ?", owner, name))

    def _count(self, generation: str) -> int:
        return int(self._one("SELECT count(*) FROM block WHERE generation = ?", generation))

    def _verdicts(self, generation: str, seq: int, verdicts: Sequence[Verdict], *, committed: bool) -> None:
        for attempt, verdict in enumerate(verdicts, 1):
            more = {"seq": seq, "attempt": attempt, "committed": committed}
            self._insert("verdict", generation=generation, **more, **msgspec.structs.asdict(verdict))

    def _settle(self, generation: str, status: str, now: float, *, code: str = "", message: str = "") -> None:
        self._db.execute(
            "UPDATE generation SET status = ?, code = ?, message = ?, updated_at = ? WHERE id = ?",
            (status, code, message, now, generation),
        )

    def _journal(self, now: float, project: int, generation: str, kind: str, data: dict[str, Any]) -> None:
        text = msgspec.json.encode(data).decode()
        self._insert("journal", at=now, project=project, generation=generation, kind=kind, data=text)

    def _insert(self, table: str, **row: object) -> None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (*row.values(),))  # noqa: S608  # our names

    def _one(self, query: str, *values: object) -> Any:
        return self._db.execute(query, values).fetchone()[0]

    def _row(self, query: str, *values: object) -> dict[str, Any] | None:
        """The first row, by the names of its columns; None where there is none."""
        found = self._db.execute(query, values)
        row = found.fetchone()
        return None if row is None else dict(zip((column[0] for column in found.description), row, strict=True))

    # what is kept, and for how long

    def recent_blocks(self, opened: OpenGeneration, limit: int) -> tuple[str, ...]:
        """The project's latest blocks of other generations, oldest first."""
        rows = self._db.execute(
            "SELECT block.text FROM block JOIN generation ON generation.id = block.generation"
            " WHERE generation.project = ? AND generation.id <> ? ORDER BY block.position DESC LIMIT ?",
            (opened.project, opened.id, limit),
        )
        return tuple(row[0] for row in rows)[::-1]

    def prune(self, days: float) -> int:
        """Drop what ended, was noted or journalled more than `days` ago; how many generations that were.

        See `next_horizon` for what a wrong clock cannot do.
        """
        with self._transaction() as wall:
            boot, running = self._ran()
            now = Moment(wall=wall, boot=boot, running=running)
            row = self._row("SELECT wall, boot, running FROM looked")
            last = None if row is None else Moment(**row)
            self._db.execute("DELETE FROM looked")
            self._insert("looked", **msgspec.structs.asdict(now))
            oldest, horizon = self._one(_OLDEST, wall), self._one("SELECT at FROM horizon")
            before = next_horizon(last, now, oldest=oldest, horizon=horizon, days=days)
            if before is None:
                return 0
            self._db.execute("UPDATE horizon SET at = ?", (before,))
            dropped = self._db.execute(
                "DELETE FROM generation WHERE status <> 'running' AND updated_at < ?", (before,)
            ).rowcount
            self._db.execute("DELETE FROM scratchpad WHERE at < ?", (before,))
            self._db.execute("DELETE FROM journal WHERE at < ?", (before,))
            self._db.execute(_DROP_EMPTY, (before,))
        return dropped

    def report(self, generation: str, owner: str) -> dict[str, Any] | None:
        """What became of a generation of `owner`, with its blocks; None where there is none."""
        found = self._row(
            "SELECT generation.id, project.name AS project, model, domain, policy, status, code, message"
            " FROM generation JOIN project ON project.id = generation.project WHERE generation.id = ? AND owner = ?",
            generation,
            owner,
        )
        if found is None:
            return None
        blocks = self._db.execute("SELECT text FROM block WHERE generation = ? ORDER BY seq", (generation,))
        return {**found, "blocks": [text for (text,) in blocks]}


class Keeper:
    """Has a project memory written without holding the loop up. A call that was begun is done, whoever waits for it."""

    def __init__(self, memory: ProjectMemory) -> None:
        """Takes the memory over: nothing else may call it from now on."""
        self._memory = memory
        self.is_gone = memory.is_gone
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")

    async def do(self, method: Callable[Concatenate[ProjectMemory, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the memory, after all earlier calls. Raises Refusal where the disk fails.

        A cancelled caller still waits until its call is done.
        """
        call = functools.partial(method, self._memory, *args, **kwargs)
        try:
            done = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._thread, call))
        except RuntimeError:
            raise Refusal(503, "front_stopping", "the project memory is closed") from None
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait({done})
            raise
        except sqlite3.Error as error:
            raise Refusal(503, "memory_failed", f"the project memory cannot be used: {error}") from error

    def close(self) -> None:
        """Finish all calls, then close the file."""
        self._thread.shutdown(wait=True)
        self._memory.close()


def _file_at(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def _machine_ran() -> tuple[str, float]:
    """Id of this boot, and the seconds that the machine has run since, suspend included."""
    return boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)


def _opened(generation: str, project: int, fields: dict[str, str]) -> OpenGeneration:
    """A generation without blocks; unknown keys of `fields` are ignored."""
    return msgspec.convert({"id": generation, "project": project, **fields}, OpenGeneration)


def unusable(path: Path, why: str) -> Finding:
    """The finding for a memory that cannot be opened."""
    message = f"the project memory {path} cannot be used: {why}"
    note = "move the file away to begin with an empty one"
    return fault("orchestrate/memory-unusable", "orchestration.memory", message, note)
