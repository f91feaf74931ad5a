"""`launch logs`: one server's log as it is, or several, each line after its server's name. I/O: reads logs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec

from launcher.cli.installed import installed_here, journal_of, names_of
from launcher.cli.running import fleets, require_known
from launcher.cli.terminal import Terminal, terminals
from launcher.files.state import deployment_state_dir, known_deployments
from launcher.ir.answers import LogLine, LogsDocument
from launcher.supervise.logs import tail

POLL_S = 0.2
CHUNK_BYTES = 1 << 20
_COLOURS = ("cyan", "green", "yellow", "blue", "red")


def show_logs(names: tuple[str, ...], *, follow: bool, lines: int, as_json: bool = False) -> int:
    """Print the last `lines` of each log, and with `follow` what comes.

    `as_json`: as one document, or with `follow` a line of JSON each. Raises ConfigError for an unknown name.
    """
    out, _ = terminals()
    journals, rest = _journals(names, follow=follow, lines=lines)
    files = {} if names and not rest else _files(rest, left=not journals)
    if as_json and not follow:
        out.json(LogsDocument(schema="launch.logs/v1", lines=tuple(_last(journals, files, lines))))
        return 0
    if not files and not journals:
        if not as_json:
            out.line("no server has a log yet" if not names else "no log yet")
        return 0
    with ExitStack() as stack:
        readers = []
        for journal in journals:
            readers.append(stack.enter_context(journal.read(piped=as_json)))
            if as_json:
                Thread(target=_relay, args=(out, journal, readers[-1]), daemon=True).start()
            elif not follow:
                readers[-1].wait()
            stack.callback(readers[-1].terminate)
        if files:
            _show_files(out, files, follow=follow, lines=lines, as_json=as_json)
        statuses = [reader.wait() for reader in readers]
    return max((status if status >= 0 else 128 - status for status in statuses), default=0)


class _SystemdJournal(msgspec.Struct, frozen=True):
    """What systemd keeps of one installed fleet: the command that prints it, and whose each unit is."""

    argv: list[str]
    names: dict[str, str]
    deployment: str

    def read(self, *, piped: bool) -> subprocess.Popen[bytes]:
        """The command, at work: as people read it, or `piped` as JSON."""
        if piped:
            return subprocess.Popen([*self.argv, "--output=json", "--all"], stdout=subprocess.PIPE)
        return subprocess.Popen([*self.argv, "--output=short-iso"])

    def line(self, raw: bytes) -> LogLine:
        """One entry of the journal. systemd's own entries about a unit name it in UNIT."""
        entry: dict[str, Any] = msgspec.json.decode(raw)
        units = (entry.get(key) for key in ("UNIT", "USER_UNIT", "_SYSTEMD_USER_UNIT", "_SYSTEMD_UNIT"))
        message = entry.get("MESSAGE") or ""
        return LogLine(
            name=next((self.names[unit] for unit in units if unit in self.names), self.deployment),
            line=bytes(message).decode(errors="replace") if isinstance(message, list) else message,  # what is no UTF-8
            at=int(entry["__REALTIME_TIMESTAMP"]) / 1e6,
        )


def _relay(out: Terminal, journal: _SystemdJournal, reader: subprocess.Popen[bytes]) -> None:
    for raw in reader.stdout or ():
        out.json(journal.line(raw), indent=0)


def _last(journals: Iterable[_SystemdJournal], files: Mapping[str, Path], lines: int) -> Iterator[LogLine]:
    for journal in journals:
        with journal.read(piped=True) as reader:
            yield from map(journal.line, reader.stdout or ())
    for name, path in files.items():
        yield from (LogLine(name=name, line=line) for line in tail(path, lines))


def _journals(names: tuple[str, ...], *, follow: bool, lines: int) -> tuple[list[_SystemdJournal], tuple[str, ...]]:
    """The journals that have logs of `names`, or all; and the names that are in none."""
    found, rest = [], set(names)
    for installed in installed_here():
        known = {c.name: c.name for c in installed.components}
        known |= {name: installed.name for name in names_of(installed) if name not in known}  # the runtime's own front
        chosen = [known[name] for name in names or names_of(installed) if name in known]
        if chosen:
            whose = {unit: c.name for c in installed.components for unit in c.units}
            argv = journal_of(installed, chosen, follow=follow, lines=lines)
            found.append(_SystemdJournal(argv, whose, installed.name))
        rest -= set(known)
    return found, tuple(name for name in names if name in rest)


def _show_files(out: Terminal, files: Mapping[str, Path], *, follow: bool, lines: int, as_json: bool) -> None:
    width = max(len(name) for name in files)
    heads = {
        name: f"{out.style(f'{name:<{width}} |', _COLOURS[i % len(_COLOURS)])} " if len(files) > 1 else ""
        for i, name in enumerate(files)
    }

    def show(name: str, line: str) -> None:
        if as_json:
            out.json(LogLine(name=name, line=line), indent=0)
        else:
            out.line(f"{heads[name]}{line}")

    for name, path in files.items():
        for line in tail(path, lines):
            show(name, line)
    if follow:
        _follow(out, files, None if len(files) == 1 and not as_json else show)


def _files(names: tuple[str, ...], *, left: bool) -> dict[str, Path]:
    """The log of each of `names`, or of everything that runs; `left`: if nothing runs, those that are left."""
    statuses = list(fleets().values())
    running = {p.name: Path(p.log_file) for s in statuses for p in s.processes if p.log_file}
    old = {
        file.stem: file
        for deployment in known_deployments()
        for file in sorted((deployment_state_dir(deployment) / "logs").glob("*.log"))
    }
    if not names:
        return running or (old if left else {})
    known = {**old, **running}
    require_known([name for name in names if name not in known], statuses)
    return {name: known[name] for name in names if name in known}


def _follow(out: Terminal, files: Mapping[str, Path], show: Callable[[str, str], None] | None) -> None:
    """Print what comes, for ever, by whole lines or (without `show`) as it is.

    A log that is truncated or replaced meanwhile is followed from its new start.
    """
    positions = {name: path.stat().st_size if path.exists() else 0 for name, path in files.items()}
    rest = dict.fromkeys(files, "")
    while True:
        time.sleep(POLL_S)
        for name, path in files.items():
            try:
                size = path.stat().st_size
                start = positions[name] if size >= positions[name] else 0
                with path.open("rb") as file:
                    file.seek(start)
                    chunk = file.read(CHUNK_BYTES)
            except FileNotFoundError:
                positions[name] = 0
                continue
            positions[name] = start + len(chunk)
            if show is None:
                out.stream.write(chunk.decode(errors="replace"))
                out.stream.flush()
                continue
            *whole, rest[name] = (rest[name] + chunk.decode(errors="replace")).split("\n")
            for line in whole:
                show(name, line)
