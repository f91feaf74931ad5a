"""The tables of the project memory. Pure."""

from __future__ import annotations

VERSION = 2
"""`PRAGMA user_version` of a database with these tables."""

TABLES = """
CREATE TABLE project (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,              -- name of the API key that it belongs to; '' where no keys are asked for
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (owner, name)
);
CREATE TABLE generation (
    id TEXT PRIMARY KEY,
    project INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,             -- of the request, so that only the same one resumes it
    model TEXT NOT NULL,
    domain TEXT NOT NULL,
    policy TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'complete', 'failed', 'cancelled', 'interrupted')),
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    began_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX generation_of ON generation (project, began_at);
CREATE TABLE block (
    position INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of commits: the project's state is its blocks by position
    generation TEXT NOT NULL REFERENCES generation (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL CHECK (seq >= 0),
    text TEXT NOT NULL,
    server TEXT NOT NULL,
    ends TEXT NOT NULL,
    committed_at REAL NOT NULL,
    UNIQUE (generation, seq)
);
CREATE TABLE verdict (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    generation TEXT NOT NULL REFERENCES generation (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    correction TEXT NOT NULL,
    server TEXT NOT NULL,
    seconds REAL NOT NULL,
    committed INTEGER NOT NULL,       -- 1: of a block that was committed with it
    draft TEXT NOT NULL DEFAULT ''    -- what was judged and did not pass
);
CREATE INDEX verdict_of ON verdict (generation, seq);
CREATE TABLE scratchpad (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    generation TEXT NOT NULL,
    at REAL NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX scratchpad_of ON scratchpad (project, id);
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    project INTEGER NOT NULL,
    generation TEXT NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX journal_of ON journal (project, seq);
CREATE TABLE horizon (at REAL NOT NULL);          -- journal entries before it may be dropped
INSERT INTO horizon VALUES (0);
CREATE TABLE forgotten (project INTEGER PRIMARY KEY);
CREATE TRIGGER journal_is_append_only BEFORE UPDATE ON journal
BEGIN SELECT RAISE (ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_is_kept BEFORE DELETE ON journal
WHEN OLD.at >= (SELECT at FROM horizon) AND OLD.project NOT IN (SELECT project FROM forgotten)
BEGIN SELECT RAISE (ABORT, 'the journal is append-only'); END;
"""

MIGRATIONS = {1: "ALTER TABLE verdict ADD COLUMN draft TEXT NOT NULL DEFAULT '';"}
"""SQL by version, which turns its tables into those of the next."""
