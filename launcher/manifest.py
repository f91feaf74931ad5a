"""Encode, decode and compare the documents that the runtime reads, `fleet.json` and `routes.json`. Pure.

Bytes are deterministic: two spaces, sorted keys, a trailing newline. Whoever wrote a document, it is accepted only if
`launch render` can have written it: its names become files, units and addresses, its numbers become timers and sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec

from launcher.base.addresses import is_path, socket_path_fault
from launcher.base.decoding import UNREADABLE
from launcher.base.names import DEPLOYMENT, PROCESS, VARIABLE, control_character
from launcher.errors import ConfigError, Finding, fault
from launcher.ir.deployment import content_digest
from launcher.ir.fleet import FLEET_SCHEMA, ROUTES_SCHEMA, FleetManifest, RoutingTable, ServerUnit, ServiceUnit

RESTART_FIELDS = ("argv", "env", "host", "port", "files")
"""Fields of a server that its running process cannot take over: a change restarts it. All others concern only the
runtime."""

_HIGHEST = 1 << 62
_LONGEST_S = 1e9
"""Seconds, 32 years: a longer timer overflows the kernel's counters."""
_AT_LEAST_ONE = frozenset({"max_parallel_starts", "crash_loop_failures", "health_failures", "failures", "log_files"})
_UNCHECKED = frozenset({"request_defaults", "request_set", "body"})
"""Fields that are sent to a server as JSON and are never a path, a unit or a timer: their values are not checked."""
_ONE_LINE = frozenset({"host", "health_path", "container", "tier", "device", "builtin", "path", "exclusive"})
"""Fields whose value becomes part of a line, such as an address, a request or a metric: no control characters."""
_Document = TypeVar("_Document", bound=msgspec.Struct)


class ManifestDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What a new manifest changes: names of processes, sorted; `restarted` maps each name to the reason."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]


def argv_digest(argv: Iterable[str]) -> str:
    """`sha256:…` of a command line: its words in UTF-8, each ended by NUL, as in /proc/PID/cmdline."""
    words = b"".join(word.encode(errors="surrogatepass") + b"\0" for word in argv)
    return content_digest(words)


def decode_fleet(data: bytes, source: str = "fleet.json") -> FleetManifest:
    """The manifest in `data`. Raises ConfigError (see `_decode`); `source` is named in the message."""
    return _decode(data, FleetManifest, FLEET_SCHEMA, source, _fleet_fault)


def decode_routes(data: bytes, source: str = "routes.json") -> RoutingTable:
    """The routing table in `data`. Raises ConfigError (see `_decode`); `source` is named in the message."""
    return _decode(data, RoutingTable, ROUTES_SCHEMA, source, _routes_fault)


def encode_document(document: object) -> bytes:
    """`document` (a Struct or plain values) as indented JSON with sorted keys and a trailing newline.

    A Struct is first decoded by its own type, so that an integer in a float field (60) is written as it is read back
    (60.0).
    """
    if isinstance(document, msgspec.Struct):
        document = msgspec.json.decode(msgspec.json.encode(document), type=type(document))
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def diff_manifests(old: FleetManifest, new: FleetManifest) -> ManifestDiff:
    """The processes, servers and services alike, that change when `new` replaces `old`."""
    before, after = _processes(old), _processes(new)
    both = sorted(before.keys() & after.keys())
    reasons = {name: _why_restart(before[name], after[name]) for name in both}
    return ManifestDiff(
        started=tuple(sorted(after.keys() - before.keys())),
        stopped=tuple(sorted(before.keys() - after.keys())),
        restarted={name: reason for name, reason in reasons.items() if reason},
        kept=tuple(name for name, reason in reasons.items() if not reason),
    )


def front_changes(old: RoutingTable, new: RoutingTable) -> tuple[str, ...]:
    """The settings of the front that change when `new` replaces `old`: `host 127.0.0.1 → 0.0.0.0`."""
    fields = [(name, getattr(old.front, name), getattr(new.front, name)) for name in old.front.__struct_fields__]
    return tuple(f"{name} {_value(was)} → {_value(becomes)}" for name, was, becomes in fields if was != becomes)


def _value(value: object) -> str:
    if value is None or value == ():
        return "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _processes(manifest: FleetManifest) -> dict[str, ServerUnit | ServiceUnit]:
    servers: dict[str, ServerUnit | ServiceUnit] = {server.name: server for server in manifest.servers}
    return {**servers, **{service.name: service for service in manifest.services}}


def _why_restart(old: ServerUnit | ServiceUnit, new: ServerUnit | ServiceUnit) -> str:
    """Why a process must be restarted ("" if it need not be): the fields that differ, argv by argument."""
    if type(old) is not type(new):
        return "server and service changed places"
    changed = [name for name in RESTART_FIELDS if getattr(old, name) != getattr(new, name)]
    parts = [f"argv: {', '.join(argv_changes(old.argv, new.argv))}" if name == "argv" else name for name in changed]
    return "; ".join(parts)


def argv_changes(old: tuple[str, ...], new: tuple[str, ...]) -> list[str]:
    """Every argument that differs, as `--ctx-size 4096 → 8192`; [] if equal, one sentence if only the order differs."""
    if old == new:
        return []
    was, becomes = _options(old), _options(new)
    changed = [
        f"{key} {_spelled(was.get(key))} → {_spelled(becomes.get(key))}"
        for key in dict.fromkeys((*was, *becomes))
        if was.get(key) != becomes.get(key)
    ]
    return changed or ["the same arguments in another order"]


def _options(argv: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The argv as option → values; words before the first option belong to `binary`."""
    options: dict[str, tuple[str, ...]] = {}
    key = "binary"
    for part in argv:
        if part.startswith("-") and not part[1:2].isdigit():
            key = part
            options.setdefault(key, ())
        else:
            options[key] = (*options.get(key, ()), part)
    return options


def _spelled(values: tuple[str, ...] | None) -> str:
    return "absent" if values is None else " ".join(values) or "set"


def _decode(
    data: bytes, kind: type[_Document], schema: str, source: str, wrong: Callable[[_Document], str | None]
) -> _Document:
    """Decode and check a document of type `kind`. Raises ConfigError with one finding.

    `manifest/unreadable`: truncated, or not JSON; `manifest/foreign`: JSON of another kind; `manifest/other-version`:
    of another version of launch; `manifest/invalid`: of this version, but a value is missing, has the wrong type, or is
    none that `launch render` writes (`wrong` says which).
    """
    try:
        plain = msgspec.json.decode(data)
    except UNREADABLE as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else f"it is no JSON: {error}"
        raise ConfigError([_refused("unreadable", source, what)]) from None
    found = plain.get("schema") if isinstance(plain, dict) else None
    if found != schema:
        family = schema.rpartition("/")[0]
        if isinstance(found, str) and found.rpartition("/")[0] == family:
            raise ConfigError([_refused("other-version", source, f"it is {found}, this launch reads {schema}")])
        raise ConfigError([_refused("foreign", source, f"it is {found or 'no document of ours'}, not {schema}")])
    try:
        document = msgspec.convert(plain, kind)
        reason = wrong(document)
    except msgspec.ValidationError as error:
        raise ConfigError([_refused("invalid", source, str(error))]) from None
    except RecursionError:
        raise ConfigError([_refused("invalid", source, "a value is nested too deep")]) from None
    if reason is not None:
        raise ConfigError([_refused("invalid", source, reason)])
    return document


def _refused(code: str, source: str, why: str) -> Finding:
    return fault(f"manifest/{code}", "", f"{source} cannot be used: {why}", "run `launch render` to write it again")


def _fleet_fault(manifest: FleetManifest) -> str | None:
    """The first thing that `launch render` would never have written, with its place; None if there is none."""
    processes: list[ServerUnit | ServiceUnit] = [*manifest.servers, *manifest.services]
    counted = Counter(process.name for process in processes)
    wrong = chain(
        _bad_deployment(manifest.deployment),
        _bad_names("servers", (s.name for s in manifest.servers)),
        _bad_names("services", (s.name for s in manifest.services)),
        (f"{name!r} names two processes" for name, count in sorted(counted.items()) if count > 1),
        (f"{s.name}: argv is empty" for s in manifest.servers if not all((s.argv, *(r.argv for r in s.rungs)))),
        (f"{s.name}: argv is empty" for s in manifest.services if not s.argv and s.builtin is None),
        _bad_variables({p.name: p.env for p in processes}),
        _bad_addresses((s.name, s.host, s.port) for s in manifest.servers),
        (f"{s.name}: {s.host!r} is no address" for s in manifest.services if is_path(s.host)),
        _bad_values(manifest, "$"),
    )
    return next(wrong, None)


def _routes_fault(table: RoutingTable) -> str | None:
    targets = table.targets
    wrong = chain(
        _bad_deployment(table.deployment),
        _bad_names("targets", targets),
        (f"$.targets[{key!r}] is named {target.name!r}" for key, target in targets.items() if target.name != key),
        (
            f"{name!r} leads to {server!r}, which is no target - at `$.names`"
            for name, servers in table.names.items()
            for server in servers
            if server not in targets
        ),
        _bad_addresses((target.name, target.host, target.port) for target in targets.values()),
        _bad_values(table, "$"),
    )
    return next(wrong, None)


def _bad_deployment(name: str) -> Iterator[str]:
    if not DEPLOYMENT.fullmatch(name):
        yield f"{name!r} cannot name a deployment - at `$.deployment`"


def _bad_names(field: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not PROCESS.fullmatch(name):
            yield f"{name!r} cannot name a file and a unit - at `$.{field}`"


def _bad_addresses(listening: Iterable[tuple[str, str, int]]) -> Iterator[str]:
    """Servers (name, host, port) whose unix socket cannot be used, or has a port beside it."""
    for name, host, port in listening:
        if is_path(host) and (why := "has a port beside it" if port else socket_path_fault(host)) is not None:
            yield f"{name} listens on {host[:120]!r}, which {why}"


def _bad_variables(environments: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for process, env in environments.items():
        for name in env:
            if not VARIABLE.fullmatch(name):
                yield f"{name!r} cannot name a variable - in the environment of {process}"


def _bad_values(value: Any, at: str, field: str = "") -> Iterator[str]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in _UNCHECKED:
                yield from _bad_values(getattr(value, name), f"{at}.{name}", name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _bad_text(str(key), at, "name")
            yield from _bad_values(item, f"{at}[{key!r}]", field)
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _bad_values(item, f"{at}[{position}]", field)
    elif isinstance(value, str):
        yield from _bad_text(value, at, field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _bad_number(value, at, field)


def _bad_text(value: str, at: str, field: str) -> Iterator[str]:
    if "\0" in value:
        yield f"a NUL character - at `{at}`"
    elif field in _ONE_LINE and (found := control_character(value)) is not None:
        yield f"the control character {found} - at `{at}`"


def _bad_number(value: float, at: str, field: str) -> Iterator[str]:
    lowest, highest = float(field in _AT_LEAST_ONE), float(_HIGHEST)
    if field == "budget_bytes":  # less than nothing where the reserve is more than there is
        lowest = -highest
    elif field == "port":
        highest = 65535
    elif field.endswith("_s"):
        highest = _LONGEST_S
    elif field == "oom_score_adjust":
        lowest, highest = -1000, 1000
    if not lowest <= value <= highest:  # NaN is neither
        yield f"{value!r:.40} is not from {lowest:g} to {highest:g} - at `{at}`"
