"""`launch import`: translate existing setups into one fleet file, report what is lost, and plan the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from launcher import engine, hardware
from launcher.base.regular import read_regular
from launcher.cli import init
from launcher.cli.findings import counted, show_findings, summary
from launcher.cli.onefile import FLEET_FILE, shown_path
from launcher.cli.plan_view import show_plan
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compile_fleet
from launcher.errors import ConfigError, EngineError, LaunchError, has_errors
from launcher.files.packaged import fleet_schema_path
from launcher.importing import FORMATS, Imported, imported_text, translate
from launcher.importing.formats import UnknownFormatError


def import_files(files: Sequence[Path], *, file: Path | None, kind: str | None, dry_run: bool) -> int:
    """Translate `files` into one fleet file and plan it. Raises LaunchError; then nothing is written."""
    out, err = terminals()
    if kind is not None and kind not in FORMATS:
        raise _refused(f"there is no format {kind}", f"there are {', '.join(FORMATS)}")
    target = (file or Path(FLEET_FILE)).absolute()
    imported = Imported()
    for path in files:
        _merge(imported, _translated(path, kind))
    if not imported.servers:
        show_findings(err, imported.findings)
        raise _refused("no llama-server is started in " + ", ".join(map(str, files)))
    _engine(imported)
    text = imported_text(imported, " ".join(map(str, files)), schema=fleet_schema_path())
    show_findings(err, imported.findings)
    if dry_run:
        out.write(text)
        return 0
    if target.exists():
        note = "name another file with -f FILE, or look at the translation with --dry-run"
        raise _refused(f"{shown_path(target)} is there already and stays as it is", note)
    init.write_new(target, text)
    lost = f"{summary(imported.findings)} about what has no equal here" if imported.findings else "nothing was lost"
    out.line(f"wrote {shown_path(target)}: {counted(len(imported.servers), 'server')}, {lost}")
    _planned(out, err, target, "launch" if file is None else f"launch -f {shown_path(target)}")
    return 0


def _translated(path: Path, kind: str | None) -> Imported:
    try:
        text = read_regular(path).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _refused(f"{path}: {reason}") from None
    flags = engine.recorded(engine.recorded_names()[-1]).index()
    older = engine.recorded(engine.recorded_names()[0]).index()
    try:
        return translate(str(path), text, {**older, **flags}, os.environ, kind)
    except UnknownFormatError as error:
        note = "say which it is with --as llama-swap | preset | script | unit | compose"
        raise _refused(f"{path}: {error}", note) from None


def _merge(into: Imported, other: Imported) -> None:
    for name, fields in other.servers.items():
        into.add(name, dict(fields))
    into.rest.update(other.rest)
    into.findings += other.findings
    into.programs += other.programs


def _engine(imported: Imported) -> None:
    """Set the engine: the llama-server that the commands run, if it is here; else the one that `init` would take."""
    if "engines" in imported.rest:
        return
    here = [path for program in imported.programs if (path := shutil.which(program))]
    others = sorted({*here} - {*here[:1]})
    if others:
        note = "engines: {other: {binary: PATH, dialect: probe}}, and `engine: other` at the server"
        imported.add_loss("engines", f"{', '.join(others)} runs some of them; here {here[0]} runs all", note)
    binary = here[0] if here else None
    if binary is None:
        with contextlib.suppress(EngineError):  # the plan says that there is none
            found = init.best_engine(hardware.take_inventory())
            binary = None if found.packaged else found.binary
    if binary is not None:
        imported.rest = {"engines": {"default": {"binary": binary, "dialect": "probe"}}} | imported.rest


def _planned(out: Terminal, err: Terminal, target: Path, command: str) -> None:
    """Show the plan of the file that was written; its errors are only advice here."""
    try:
        compiled = compile_fleet([], config_dirs=[target])
    except LaunchError as error:
        show_findings(err, error.findings)
        err.line("`launch plan` shows it once this is mended")
        return
    notes = tuple(f for f in compiled.findings if f.severity != "note")
    show_plan(out, msgspec.structs.replace(compiled, findings=notes), verbose=False)
    wrong = "once the errors are mended, " if has_errors(notes) else ""
    out.line(f"{wrong}start it with: {command}")


def _refused(message: str, note: str = "docs/import.md") -> ConfigError:
    return ConfigError.of("author/not-imported", message, note)
