"""The documents that leave a compile: `fleet.json`, `routes.json`, `launch plan --json`, and their schemas. Pure.

Bytes are deterministic: two spaces, sorted keys, a trailing newline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from launcher.base.addresses import socket_of
from launcher.errors import ConfigError, Finding
from launcher.ir.answers import ANSWERS
from launcher.ir.documents import (
    CHECK_SCHEMA,
    CONFIG_SCHEMA,
    ERROR_SCHEMA,
    INSPECT_SCHEMA,
    MEMORY_SCHEMA,
    MULTIRUN_SCHEMA,
    PLAN_SCHEMA,
    RENDER_SCHEMA,
    STATUS_SCHEMA,
    CheckDocument,
    ConfigDocument,
    ErrorDocument,
    HardwareDocument,
    HostDocument,
    InspectDocument,
    MemoryDocument,
    MultirunDocument,
    PlanDocument,
    RenderDocument,
    ServerDocument,
    ServiceDocument,
    UpstreamDocument,
)
from launcher.ir.events import EVENTS_SCHEMA, EventList
from launcher.ir.fleet import FLEET_SCHEMA, ROUTES_SCHEMA, FleetManifest, RoutingTable, ServerUnit, ServiceUnit
from launcher.ir.live import FleetStatus
from launcher.ir.page import (
    EVENT_LISTS_SCHEMA,
    STREAM_SCHEMA,
    UI_SCHEMA,
    EventLists,
    StreamDocument,
    UiDocument,
)
from launcher.ir.plan import FleetPlan
from launcher.ir.possible import wrong_in_fleet, wrong_in_routes
from launcher.ir.proof import Proof
from launcher.ir.speed import CALIBRATE_SCHEMA, CalibrateDocument, ServerSpeed
from launcher.ir.sweep import SWEEP_SCHEMA, SweepDocument

DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    FLEET_SCHEMA: FleetManifest,
    ROUTES_SCHEMA: RoutingTable,
    PLAN_SCHEMA: PlanDocument,
    INSPECT_SCHEMA: InspectDocument,
    STATUS_SCHEMA: FleetStatus,
    CHECK_SCHEMA: CheckDocument,
    CONFIG_SCHEMA: ConfigDocument,
    RENDER_SCHEMA: RenderDocument,
    MEMORY_SCHEMA: MemoryDocument,
    ERROR_SCHEMA: ErrorDocument,
    EVENTS_SCHEMA: EventList,
    EVENT_LISTS_SCHEMA: EventLists,
    STREAM_SCHEMA: StreamDocument,
    UI_SCHEMA: UiDocument,
    MULTIRUN_SCHEMA: MultirunDocument,
    SWEEP_SCHEMA: SweepDocument,
    CALIBRATE_SCHEMA: CalibrateDocument,
    **ANSWERS,
}
"""Schema name → the type that defines it."""

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


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the document `name` (`launch.plan/v1`). KeyError for an unknown name."""
    schema = msgspec.json.schema(DOCUMENTS[name])
    definition = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    definition["properties"]["schema"] = {"const": name}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{name}", **schema}


def plan_document(
    plan: FleetPlan,
    argv: Mapping[str, tuple[str, ...]],
    env: Mapping[str, Mapping[str, str]],
    findings: Iterable[Finding] | None = None,
    proof: Proof | None = None,
    *,
    speeds: tuple[ServerSpeed, ...] = (),
) -> dict[str, Any]:
    """`launch plan --json` for `plan`, with argv and environment by server; `findings` default to the plan's own."""
    document = PlanDocument(
        deployment=plan.deployment,
        input_digest=plan.input_digest,
        hardware=_hardware_document(plan),
        servers=tuple(
            ServerDocument(
                name=s.name,
                roles=s.config.roles,
                port=s.port,
                tier=s.tier,
                model=s.config.model,
                quantization=s.config.quantization,
                slots=s.settings.slots,
                n_ctx=s.settings.n_ctx,
                n_ctx_per_slot=s.settings.n_ctx_per_slot,
                argv=argv[s.name],
                env=dict(env.get(s.name, {})),
                memory=s.memory,
                source="proven" if s.proved else s.model.source,
                proven_by=s.proved.build if s.proved else msgspec.UNSET,
                host=s.on or msgspec.UNSET,
                address=s.config.host if s.on else msgspec.UNSET,
                socket=socket_of(s.config.host) or msgspec.UNSET,
            )
            for s in plan.servers
        ),
        services=tuple(
            ServiceDocument(
                name=s.name,
                port=s.port,
                ram_bytes=s.config.ram_bytes,
                vram_bytes=s.config.vram_bytes or msgspec.UNSET,
                host=s.on or msgspec.UNSET,
            )
            for s in plan.services
        ),
        upstreams=tuple(
            UpstreamDocument(
                name=name,
                url=upstream.url,
                models=(*upstream.models, *upstream.aliases),
                slots=upstream.slots,
                ram_bytes=upstream.ram_bytes,
                vram_bytes=upstream.vram_bytes,
            )
            for name, upstream in plan.config.upstreams.items()
        )
        or msgspec.UNSET,
        totals=plan.totals,
        findings=tuple(plan.findings if findings is None else findings),
        solved=plan.solved or msgspec.UNSET,
        coresidency=plan.residency or msgspec.UNSET,
        speeds=speeds or msgspec.UNSET,
        proof=proof,
    )
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built


def _hardware_document(plan: FleetPlan) -> HardwareDocument:
    """The machine, or the machines and which of them has the front: the first of the plan's devices."""
    hardware = plan.config.hardware
    first = plan.devices[0].host if plan.devices else ""
    hosts = tuple(HostDocument(name=n, address=h.address, front=n == first) for n, h in hardware.hosts.items())
    return HardwareDocument(name=hardware.name, devices=plan.devices, hosts=hosts or msgspec.UNSET)


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
    """Servers and services by name."""
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
    return Finding(
        code=f"manifest/{code}",
        severity="error",
        key="",
        message=f"{source} cannot be used: {why}",
        notes=("run `launch render` to write it again",),
    )
