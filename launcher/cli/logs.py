"""`launch logs`: one server's log as it is, several merged, each line behind its server's name. I/O: reads logs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from launcher.cli.installed import installed_here, journal_of, names_of
from launcher.cli.running import fleets, require_known
from launcher.cli.terminal import Terminal, terminals
from launcher.files import deployment_state_dir, known_deployments
from launcher.supervise.logs import tail

POLL_S = 0.2
CHUNK_BYTES = 1 << 20
_COLOURS = ("cyan", "green", "yellow", "blue", "red")


def show_logs(names: tuple[str, ...], *, follow: bool, lines: int, no_color: bool = False) -> int:
    """The last `lines` of each log, and with `follow` what comes. Raises ConfigError for a name that is nobody's."""
    out, _ = terminals(no_color=no_color)
    journals, rest = _journals(names, follow=follow, lines=lines)
    files = {} if names and not rest else _files(rest, left=not journals)
    if not files and not journals:
        out.line("no server has a log yet" if not names else "no log yet")
        return 0
    with ExitStack() as stack:
        readers = []
        for argv in journals:
            readers.append(stack.enter_context(subprocess.Popen(argv)))
            if not follow:
                readers[-1].wait()
            stack.callback(readers[-1].terminate)
        if files:
            _show_files(out, files, follow=follow, lines=lines)
        statuses = [reader.wait() for reader in readers]
    return max((status if status >= 0 else 128 - status for status in statuses), default=0)


def _journals(names: tuple[str, ...], *, follow: bool, lines: int) -> tuple[list[list[str]], tuple[str, ...]]:
    """Commands that print the logs that systemd has, of `names` or of all; and the names that it has none of."""
    found, rest = [], set(names)
    for installed in installed_here():
        known = {c.name: c.name for c in installed.components}
        known |= {name: installed.name for name in names_of(installed) if name not in known}  # the runtime's own front
        chosen = [known[name] for name in names or names_of(installed) if name in known]
        if chosen:
            found.append(journal_of(installed, chosen, follow=follow, lines=lines))
        rest -= set(known)
    return found, tuple(name for name in names if name in rest)


def _show_files(out: Terminal, files: Mapping[str, Path], *, follow: bool, lines: int) -> None:
    """The end of each file, and with `follow` what comes."""
    width = max(len(name) for name in files)
    heads = {
        name: f"{out.style(f'{name:<{width}} |', _COLOURS[i % len(_COLOURS)])} " if len(files) > 1 else ""
        for i, name in enumerate(files)
    }
    for name, path in files.items():
        for line in tail(path, lines):
            out.line(f"{heads[name]}{line}")
    if follow:
        _follow(out, files, heads)


def _files(names: tuple[str, ...], *, left: bool) -> dict[str, Path]:
    """The log of each of `names`, or of everything that runs; `left`: of what runs no more, what is left of it."""
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


def _follow(out: Terminal, files: Mapping[str, Path], heads: Mapping[str, str]) -> None:
    """Print what comes, for ever. A log that is cut or replaced meanwhile is followed from its new start."""
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
            if not heads[name]:
                out.stream.write(chunk.decode(errors="replace"))
                out.stream.flush()
                continue
            *whole, rest[name] = (rest[name] + chunk.decode(errors="replace")).split("\n")
            for line in whole:
                out.line(f"{heads[name]}{line}")
