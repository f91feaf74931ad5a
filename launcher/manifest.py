"""The documents that the runtime reads, `fleet.json` and `routes.json`: written, read, compared. Pure.

Bytes are deterministic: two spaces, sorted keys, a trailing newline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from launcher.errors import ConfigError, Finding, fault
from launcher.ir.fleet import FLEET_SCHEMA, ROUTES_SCHEMA, FleetManifest, RoutingTable, ServerUnit, ServiceUnit
from launcher.ir.possible import wrong_in_fleet, wrong_in_routes

RESTART_FIELDS = ("argv", "env", "host", "port", "files")
"""What a running server cannot take over: a change restarts it. Everything else is the runtime's own."""

SERVICE_RESTART_FIELDS = ("argv", "env", "host", "port")

_Document = TypeVar("_Document", bound=msgspec.Struct)


class ManifestDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What taking over a new manifest does: names, sorted; `restarted` says why."""

    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]


def argv_digest(argv: Iterable[str]) -> str:
    """`sha256:…` of a command line: its words in UTF-8, each ended by NUL, as /proc/PID/cmdline shows them."""
    words = b"".join(word.encode(errors="surrogatepass") + b"\0" for word in argv)
    return f"sha256:{hashlib.sha256(words).hexdigest()}"


def encode_fleet(manifest: FleetManifest) -> bytes:
    """`fleet.json`."""
    return encode_document(manifest)


def encode_routes(table: RoutingTable) -> bytes:
    """`routes.json`."""
    return encode_document(table)


def decode_fleet(data: bytes, source: str = "fleet.json") -> FleetManifest:
    """The manifest in `data`. Raises ConfigError (see `_decode`); `source` is named in the message."""
    return _decode(data, FleetManifest, FLEET_SCHEMA, source, wrong_in_fleet)


def decode_routes(data: bytes, source: str = "routes.json") -> RoutingTable:
    """The routing table in `data`. Raises ConfigError (see `_decode`); `source` is named in the message."""
    return _decode(data, RoutingTable, ROUTES_SCHEMA, source, wrong_in_routes)


def encode_document(document: object) -> bytes:
    """`document` (a Struct or plain values) as indented JSON with sorted keys and a trailing newline.

    A Struct goes through its own types once, so that 60 in a field of floats is the 60.0 it is read back as.
    """
    if isinstance(document, msgspec.Struct):
        document = msgspec.json.decode(msgspec.json.encode(document), type=type(document))
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def diff_manifests(old: FleetManifest, new: FleetManifest) -> ManifestDiff:
    """What changes for processes when `new` replaces `old`; servers and services alike."""
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
    """What changes of the front when `new` replaces `old`: `host 127.0.0.1 → 0.0.0.0`."""
    fields = [(name, getattr(old.front, name), getattr(new.front, name)) for name in old.front.__struct_fields__]
    return tuple(f"{name} {_value(was)} → {_value(becomes)}" for name, was, becomes in fields if was != becomes)


def _value(value: object) -> str:
    """A field of the front, for people."""
    if value is None or value == ():
        return "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _processes(manifest: FleetManifest) -> dict[str, ServerUnit | ServiceUnit]:
    servers: dict[str, ServerUnit | ServiceUnit] = {server.name: server for server in manifest.servers}
    return {**servers, **{service.name: service for service in manifest.services}}


def _why_restart(old: ServerUnit | ServiceUnit, new: ServerUnit | ServiceUnit) -> str:
    """Why a process cannot go on as it is ("" if it can): what differs, words of argv spelled out."""
    if type(old) is not type(new):
        return "server and service changed places"
    fields = RESTART_FIELDS if isinstance(new, ServerUnit) else SERVICE_RESTART_FIELDS
    changed = [name for name in fields if getattr(old, name) != getattr(new, name)]
    parts = [f"argv: {', '.join(argv_changes(old.argv, new.argv))}" if name == "argv" else name for name in changed]
    return "; ".join(parts)


def argv_changes(old: tuple[str, ...], new: tuple[str, ...]) -> list[str]:
    """Every argument that differs, as `--ctx-size 4096 → 8192`; empty where nothing does."""
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
    """The argv as option → values; what stands before the first option belongs to `binary`."""
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
    """The values of an option; None: it is not there."""
    return "absent" if values is None else " ".join(values) or "set"


def _decode(
    data: bytes, kind: type[_Document], schema: str, source: str, wrong: Callable[[_Document], str | None]
) -> _Document:
    """A document of type `kind`. Raises ConfigError with one finding.

    `manifest/unreadable`: torn, or not JSON; `manifest/foreign`: JSON of another kind; `manifest/other-version`: of
    another version of launch; `manifest/invalid`: of this version, but a value is missing, of the wrong type, or none
    that `launch render` writes (`wrong` says what).
    """
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
    """The finding for a document that cannot be used, with the way to get a good one."""
    return fault(f"manifest/{code}", "", f"{source} cannot be used: {why}", "run `launch render` to write it again")
