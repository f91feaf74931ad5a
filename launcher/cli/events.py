"""`launch events`: what happened to a fleet, when and why, from its event store; no runtime is needed. I/O."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path

from launcher.cli.findings import show_findings, show_problems
from launcher.cli.running import state_dirs
from launcher.cli.terminal import Terminal, local_time, terminals
from launcher.errors import ConfigError, Finding, HostError
from launcher.events import FILE_NAME, read_records, store_files
from launcher.files.state import deployment_state_dir, known_deployments
from launcher.ir.events import EventList, Record
from launcher.ir.page import EventLists

POLL_S = 0.3
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_STYLES = {
    **dict.fromkeys(("ready", "block"), "green"),
    **dict.fromkeys(("degraded", "slow", "evicted", "room", "target"), "yellow"),
    **dict.fromkeys(("preload", "prediction"), "blue"),
    "failed": "red",
    "swap": "cyan",
    "decision": "dim",
}


def show_events(*, follow: bool, since: str | None, lines: int, as_json: bool) -> int:
    """Print the events of every fleet known here, the oldest first; with `follow` also new ones, for ever.

    `since`: `30m`, `2h`, `1d`, or a time in ISO 8601; without it the last `lines`. With both `follow` and `as_json`
    each event is a line of JSON. Raises ConfigError for a time that is none.
    """
    out, err = terminals()
    earliest = moment(since, time.time()) if since is not None else 0.0
    problems: list[Finding] = []
    stores = {state / FILE_NAME: name for name, state in state_dirs(problems)}
    chosen = {path: _chosen(path, earliest, lines if since is None else 0) for path in stores}
    last: dict[Path, int] = {}
    sizes: dict[Path, tuple[int, ...]] = {}
    if as_json and not follow:
        fleets = (EventList(deployment=stores[path], events=tuple(records)) for path, records in chosen.items())
        out.json(EventLists(fleets=tuple(fleets)))
        return show_problems(err, problems)
    for path, records in chosen.items():
        for record in records:
            _show(out, record, stores[path] if len(stores) > 1 else "", as_json=as_json)
            last[path] = record.id
    show_findings(err, problems)
    if not last and not follow:
        out.line("nothing is known to have happened")
    while follow:
        time.sleep(POLL_S)
        stores |= {deployment_state_dir(name) / FILE_NAME: name for name in known_deployments()}
        for path, name in stores.items():
            size = tuple(file.stat().st_size if file.is_file() else 0 for file in store_files(path))
            if sizes.get(path) == size:
                continue
            sizes[path] = size
            for record in read_records(path):
                if record.id > last.get(path, 0) and record.at >= earliest:
                    _show(out, record, name if len(stores) > 1 else "", as_json=as_json)
                    last[path] = record.id
    return HostError.exit_code if problems else 0


def moment(text: str, now: float) -> float:
    """Unix time of `text`: as long before `now` (`2h`), or a date and time in local time. Raises ConfigError."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError.of(
            "config/usage",
            f"--since: {text!r} is no time",
            "30s, 15m, 2h and 3d count back from now; 2026-05-01T13:00 is a time here",
        ) from None


def _chosen(path: Path, earliest: float, last: int) -> list[Record]:
    """The records since `earliest` (Unix time), and of these the `last` ones; 0: all."""
    records = [record for record in read_records(path) if record.at >= earliest]
    return records[-last:] if last else records


def line_of(out: Terminal, record: Record, fleet: str = "") -> str:
    """One event as a line: time, kind, name, message, cause."""
    at = local_time(record.at, "%Y-%m-%d %H:%M:%S")
    kind = out.style(f"{record.kind:<10}", _STYLES.get(record.kind, "dim"))
    name = f"{record.name}: " if record.name else ""
    cause = f"  ({record.cause})" if record.cause else ""
    return f"{at} {f'{fleet} ' if fleet else ''}{kind} {shown(f'{name}{record.message}{cause}')}"


def shown(text: str) -> str:
    """`text` on one line, without what a terminal would obey: causes quote the output of servers."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _show(out: Terminal, record: Record, fleet: str, *, as_json: bool) -> None:
    if as_json:
        out.json(record, indent=0)
    else:
        out.line(line_of(out, record, fleet))
