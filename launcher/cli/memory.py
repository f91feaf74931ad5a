"""`launch memory`: list, export and forget projects, and show the drafts that validators refused."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.cli.findings import counted, printable, show_problems
from launcher.cli.running import state_dirs
from launcher.cli.terminal import Terminal, local_time, terminals
from launcher.errors import ConfigError, Finding, HostError
from launcher.ir.answers import DraftDocument, DraftsDocument, MemoryDocument, ProjectDocument
from launcher.ir.project import ProjectSummary
from launcher.orchestrate import FILE_NAME, export_project, forget_project, list_drafts, list_projects

Found = tuple[str, Path, ProjectSummary]
"""Deployment, file of its memory, and a project in it."""


def show_memory(name: str | None, *, deployment: str | None, owner: str | None, forget: bool, as_json: bool) -> int:
    """List all projects, or print one as JSON lines; with `forget` drop it instead. Returns the exit code.

    Raises ConfigError for a project that does not exist, or is in several places; HostError for an unusable file.
    """
    problems: list[Finding] = []
    projects = _projects(deployment, owner, problems)
    out, errors = terminals()
    if name is None:
        _list(projects, out, as_json=as_json)
        return show_problems(errors, problems)
    if problems and all(found[2].name != name for found in projects):
        raise HostError(problems)
    where, path, project = _only(name, [found for found in projects if found[2].name == name], projects)
    if forget:
        forget_project(path, project.owner, name)
        what = f"{counted(project.generations, 'answer')}, {counted(project.blocks, 'block')}"
        errors.line(f"forgot {name} of {where}: {what}")
        return 0
    for line in export_project(path, project.owner, name) or ():
        out.json(line, indent=0)
    return 0


def show_drafts(name: str | None, *, deployment: str | None, owner: str | None, as_json: bool) -> int:
    """Show what validators refused, in one project or in all. Returns the exit code.

    Raises ConfigError for a project that does not exist, or is in several places; HostError for an unusable file.
    """
    problems: list[Finding] = []
    projects = _projects(deployment, owner, problems)
    if name is not None:
        projects = [_only(name, [found for found in projects if found[2].name == name], projects)]
    rows = tuple(
        DraftDocument(deployment=where, project=project.name, owner=project.owner, **msgspec.structs.asdict(draft))
        for where, path, project in projects
        for draft in list_drafts(path, project.owner, project.name)
    )
    out, errors = terminals()
    if as_json:
        out.json(DraftsDocument(drafts=rows))
        return show_problems(errors, problems)
    for row in rows:
        when = local_time(row.at)
        which = f"block {row.block} of {row.generation} by {row.model}, verdict {row.attempt}"
        out.line(printable(f"{row.project}, {when}: {which}"))
        out.line(f"  {printable(row.server)}: {out.style(printable(row.kind), 'yellow')}: {printable(row.reason)}")
        if row.correction:
            out.line(f"  to change: {printable(row.correction)}")
        for line in row.text.splitlines():
            out.line(f"    {printable(line.expandtabs())}")
    if not rows:
        errors.line("nothing was refused")
    return show_problems(errors, problems)


def _projects(deployment: str | None, owner: str | None, problems: list[Finding]) -> list[Found]:
    """All projects of this deployment and owner; what cannot be read is added to `problems`. Raises HostError."""
    files = [(name, state / FILE_NAME) for name, state in state_dirs(problems) if deployment in (None, name)]
    return [
        (where, path, project)
        for where, path in files
        if path.exists()
        for project in list_projects(path)
        if owner is None or project.owner == owner
    ]


def _list(projects: list[Found], out: Terminal, *, as_json: bool) -> None:
    if as_json:
        known = (ProjectDocument(deployment=where, **msgspec.structs.asdict(project)) for where, _, project in projects)
        out.json(MemoryDocument(projects=tuple(known)))
        return
    rows = []
    for where, _, project in projects:
        counts = (str(project.generations), str(project.blocks), str(project.notes))
        last = local_time(project.last_at)
        rows.append((where, printable(project.name), printable(project.owner) or "-", *counts, last))
    header = ("DEPLOYMENT", "PROJECT", "OWNER", "ANSWERS", "BLOCKS", "NOTES", "LAST USED")
    out.table(header, rows, right={3, 4, 5})


def _only(name: str, found: list[Found], known: list[Found]) -> Found:
    """The one project of that name; if its deployment was run by `up` and is installed, the installed one's.

    Raises ConfigError if there is none, or several.
    """
    if len({(where, p.owner) for where, _, p in found}) == 1:
        return found[-1]  # installed ones come last
    if found:
        message = f"there are several projects {name!r}"
        places = ", ".join(f"--deployment {where} --owner {p.owner or repr('')}" for where, _, p in found)
        note = f"say which one: {places}"
    else:
        message = f"there is no project {name!r}"
        note = "known are " + (", ".join(sorted({p.name for _, _, p in known})) or "none")
    raise ConfigError.of("orchestrate/unknown-project", message, note)
