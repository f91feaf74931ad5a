"""Reads a project memory beside the runtime that writes it, for people and other programs. I/O: a file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import HostError
from launcher.ir.project import Draft, ProjectSummary
from launcher.orchestrate.memory import BUSY_MS, unusable

_EXPORT_QUERIES = {
    "generation": "SELECT * FROM generation WHERE project = ? ORDER BY began_at, id",
    "block": "SELECT block.* FROM block JOIN generation ON generation.id = block.generation"
    " WHERE generation.project = ? ORDER BY position",
    "verdict": "SELECT verdict.* FROM verdict JOIN generation ON generation.id = verdict.generation"
    " WHERE generation.project = ? ORDER BY verdict.id",
    "note": "SELECT * FROM scratchpad WHERE project = ? ORDER BY id",
    "journal": "SELECT * FROM journal WHERE project = ? ORDER BY seq",
}
"""Kinds of lines in an export, in order, with their queries."""


def list_projects(path: Path) -> list[ProjectSummary]:
    """Every project of the memory at `path`, by owner and name. Raises HostError."""
    query = (
        "SELECT owner, name,"
        " (SELECT count(*) FROM generation WHERE project = project.id) AS generations,"
        " (SELECT count(*) FROM block JOIN generation ON generation.id = block.generation"
        "  WHERE generation.project = project.id) AS blocks,"
        " (SELECT count(*) FROM scratchpad WHERE project = project.id) AS notes,"
        " (SELECT coalesce(max(at), created_at) FROM journal WHERE project = project.id) AS last_at"
        " FROM project ORDER BY owner, name"
    )
    with _opened(path, "ro") as db:
        return [ProjectSummary(**row) for row in _rows(db, query)]


def export_project(path: Path, owner: str, name: str) -> list[dict[str, Any]] | None:
    """All rows of a project, each with its kind as `line`; None where there is no such project. Raises HostError."""
    with _opened(path, "ro") as db:
        db.execute("BEGIN")  # one state of everything, whatever is written meanwhile
        row = next(iter(_rows(db, "SELECT * FROM project WHERE owner = ? AND name = ?", owner, name)), None)
        if row is None:
            return None
        found: list[dict[str, Any]] = [{"line": "project", **row}]
        for kind, query in _EXPORT_QUERIES.items():
            found += [{"line": kind, **part} for part in _rows(db, query, row["id"])]
    for entry in found:
        if "data" in entry:
            entry["data"] = msgspec.json.decode(entry["data"])
    return found


def list_drafts(path: Path, owner: str, name: str) -> list[Draft]:
    """Texts that the validator of a project did not accept, in the order of the verdicts. Raises HostError."""
    with _opened(path, "ro") as db:
        if not _rows(db, "SELECT * FROM pragma_table_info('verdict') WHERE name = 'draft'"):
            return []  # the file of an older launch, which no runtime has opened since
        query = (
            "SELECT generation, seq + 1 AS block, attempt, kind, reason, correction, verdict.server, model,"
            " draft AS text, updated_at AS at"
            " FROM verdict JOIN generation ON generation.id = verdict.generation"
            " JOIN project ON project.id = generation.project"
            " WHERE owner = ? AND project.name = ? AND draft <> '' ORDER BY verdict.id"
        )
        return [Draft(**row) for row in _rows(db, query, owner, name)]


def recent_generations(path: Path, owner: str, name: str, most: int = 50) -> list[dict[str, Any]]:
    """The last generations of a project, the newest first, with their numbers of blocks and verdicts.

    Raises HostError.
    """
    query = (
        "SELECT generation.id, model, domain, policy, status, code, message, began_at, updated_at,"
        " (SELECT count(*) FROM block WHERE generation = generation.id) AS blocks,"
        " (SELECT count(*) FROM verdict WHERE generation = generation.id) AS verdicts"
        " FROM generation JOIN project ON project.id = generation.project"
        " WHERE owner = ? AND project.name = ? ORDER BY began_at DESC, generation.id LIMIT ?"
    )
    with _opened(path, "ro") as db:
        return _rows(db, query, owner, name, most)


def read_generation(path: Path, generation_id: str) -> dict[str, Any] | None:
    """A generation of any owner, with its blocks, verdicts and notes; None where there is none. Raises HostError."""
    with _opened(path, "ro") as db:
        db.execute("BEGIN")
        found, notes, blocks, verdicts = (
            _rows(db, query, generation_id)
            for query in (
                "SELECT * FROM generation WHERE id = ?",
                "SELECT at, text FROM scratchpad WHERE generation = ? ORDER BY id",
                "SELECT * FROM block WHERE generation = ? ORDER BY seq",
                "SELECT * FROM verdict WHERE generation = ? ORDER BY id",
            )
        )
    if not found and not notes:
        return None
    return {"generation": found[0] if found else None, "notes": notes, "blocks": blocks, "verdicts": verdicts}


def forget_project(path: Path, owner: str, name: str) -> bool:
    """Delete a project with everything in it, its journal too; False when there is none. Raises HostError."""
    with _opened(path, "rw") as db:
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        row = db.execute("SELECT id FROM project WHERE owner = ? AND name = ?", (owner, name)).fetchone()
        if row is not None:
            db.execute("INSERT INTO forgotten VALUES (?)", tuple(row))
            db.execute("DELETE FROM journal WHERE project = ?", tuple(row))
            db.execute("DELETE FROM project WHERE id = ?", tuple(row))
            db.execute("DELETE FROM forgotten")
        db.execute("COMMIT")
    return row is not None


def _rows(db: sqlite3.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    return [dict(row) for row in db.execute(query, values)]


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection to an existing file (`ro`: read-only). Raises HostError."""
    if path.exists() and not path.is_file():  # SQLite would wait for whoever writes into a pipe
        raise HostError([unusable(path, "it is no regular file")])
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise HostError([unusable(path, str(error))]) from None
    db.row_factory = sqlite3.Row
    try:
        yield db
    except sqlite3.Error as error:
        raise HostError([unusable(path, str(error))]) from None
    finally:
        db.close()
