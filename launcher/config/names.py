"""Names and addresses: names, roles, aliases, addresses and paths; rules of `CHECKS`. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from launcher.base.addresses import SOCKET_END, is_path, socket_path_fault
from launcher.base.names import TAKEN_PREFIXES, VARIABLE, derived_name
from launcher.config.nearest import listing, meant, nearest, set_to
from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.config import FleetConfig, ServiceConfig, UpstreamConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/?/", re.IGNORECASE)
_OURS = frozenset({"pkg", "built"})
_HUB = re.compile(r"(hf|huggingface):", re.IGNORECASE)


def addressable(fleet: FleetConfig) -> set[str]:
    """Every name of a server that a request or a rule may use: its own, roles, aliases and faces."""
    names = set(fleet.servers)
    for server in fleet.servers.values():
        names.update(server.roles, server.aliases, server.faces)
    return names


def callable_names(fleet: FleetConfig) -> set[str]:
    """Every name that a request may use: of servers, and of what else the front asks."""
    names = addressable(fleet)
    for name, entry in _others(fleet):
        names.update((name, *entry.models, *getattr(entry, "aliases", ())))
    return names


def _others(fleet: FleetConfig) -> Iterator[tuple[str, ServiceConfig | UpstreamConfig]]:
    """Upstreams, and services that have models."""
    yield from fleet.upstreams.items()
    yield from ((name, service) for name, service in fleet.services.items() if service.models)


def dangling(
    key: str,
    name: str,
    kind: str,
    names: Iterable[str],
    *,
    fixes: tuple[Fix, ...] | None = None,
    severity: Severity = "error",
) -> Finding:
    """The `config/dangling` finding for `name` at `key`, which no `kind` in `names` has.

    `fixes` replace the one made here, which writes the nearest name at `key`.
    """
    known = sorted(names)
    near = nearest(name, known)
    if fixes is None:
        fixes = () if near is None else (set_to(key, near, "the nearest name"),)
    return fault(
        "config/dangling",
        key,
        f"{key} names the {kind} {name!r}, which does not exist",
        *meant(near),
        listing(f"{kind}s", known),
        fixes=fixes,
        severity=severity,
    )


def check_names(fleet: FleetConfig) -> Iterator[Finding]:
    """Names of servers, services and hosts end in file names, unit names and URLs: letters, digits, - and _.

    The names of hardware and profile are the deployment's, and end in directories; units have a prefix.
    """
    named = (
        *(("servers", fleet.servers), ("services", fleet.services)),
        *(("upstreams", fleet.upstreams), ("hardware.hosts", fleet.hardware.hosts)),
    )
    for collection, entries in named:
        for name in entries:
            if not _NAME.fullmatch(name):
                notes = _how_to_name(collection, name, fleet)
                yield _bad_name(f"{collection}.{name}", name, f"the name of one of the {collection}", *notes)
    directory = "a part of the deployment's name, which names a directory"
    parts = (
        ("hardware.name", fleet.hardware.name, directory),
        ("profile.name", fleet.profile.name, directory),
        ("deploy.unit_prefix", fleet.deploy.unit_prefix, "what the names of units begin with"),
    )
    for key, name, what in parts:
        if not _PART.fullmatch(name):
            note = "use letters, digits and . _ + = -, starting with a letter, a digit or _, 100 at most"
            yield _bad_name(key, name, what, note)
    user = fleet.deploy.user
    if user is not None and not _USER.fullmatch(user):
        note = "use letters, digits, _ and -, starting with a letter or _, 31 at most; or leave it out"
        yield _bad_name("deploy.user", user, "a user's name", note)
    prefix = fleet.deploy.unit_prefix
    if prefix.partition("-")[0] in TAKEN_PREFIXES:
        message = f"units that begin with {prefix!r} are systemd's own"
        fix = set_to("deploy.unit_prefix", "launch", "what it is without being said")
        yield fault("config/bad-name", "deploy.unit_prefix", message, fixes=(fix,))


def check_variables(fleet: FleetConfig) -> Iterator[Finding]:
    """Environment variables have names that a process and systemd take."""
    for collection, entries in (("servers", fleet.servers), ("services", fleet.services), ("engines", fleet.engines)):
        for name, entry in entries.items():
            for variable in entry.env:
                if not VARIABLE.fullmatch(variable):
                    key, what = f"{collection}.{name}.env.{variable}", "the name of an environment variable"
                    yield _bad_name(key, variable, what, "use letters, digits and _, not first a digit")


def _bad_name(key: str, name: str, what: str, *notes: str) -> Finding:
    return fault("config/bad-name", key, f"{name!r} cannot be {what}", *notes)


def _how_to_name(collection: str, name: str, fleet: FleetConfig) -> tuple[str, ...]:
    """A valid name; for a server also why its derived name was not used."""
    plain = "use letters, digits, - and _, starting with a letter or digit"
    if collection != "servers":
        return (plain,)
    taken = derived_name(name)
    why = (f"its unit would be named {taken}, as another's",) if taken in fleet.servers else ()
    return (f"{plain}; or a model id (org/model:q4)", *why)


def check_duplicate_names(fleet: FleetConfig) -> Iterator[Finding]:
    """A name must lead to one server; only a role may be shared, by replicas."""
    yield from _other_clashes(fleet)
    owners: dict[str, str] = {}
    having: dict[str, list[str]] = defaultdict(list)
    for role, server_name in ((role, name) for name, server in fleet.servers.items() for role in server.roles):
        having[role].append(server_name)
    for server_name, server in fleet.servers.items():
        here = f"servers.{server_name}"
        for i, alias in enumerate(server.aliases):
            if other := _taken(fleet, having, alias, owners.get(alias), but=server_name):
                left = [a for a in server.aliases if a != alias]
                key, drop = f"{here}.aliases.{i}", set_to(f"{here}.aliases", left, f"leaves {alias} to the other")
                if alias == server.id:
                    key = f"{here}.id"
                    drop = Fix(override=f"{key}=null", effect=f"leaves {alias} to the other")
                yield _clash(key, alias, other, drop)
            owners.setdefault(alias, here)
        for face in server.faces:
            if other := _taken(fleet, having, face, owners.get(face)):
                yield _clash(f"{here}.faces.{face}", face, other)
            owners.setdefault(face, here)
        for i, role in enumerate(server.roles):
            namesake = fleet.servers.get(role)
            if role != server_name and namesake is not None and role not in namesake.roles:
                yield _clash(f"{here}.roles.{i}", role, f"the server servers.{role}")


def _taken(
    fleet: FleetConfig, having: Mapping[str, list[str]], name: str, owner: str | None, *, but: str = ""
) -> str | None:
    """Whose an alias or a face is already: a server's, `owner`'s, as a role of those `having` it. `but`: that may."""
    if name in fleet.servers and name != but:
        return f"the server servers.{name}"
    if owner is not None:
        return f"an alias or a face of {owner}"
    return next((f"a role of servers.{other}" for other in having.get(name, ()) if other != but), None)


def _other_clashes(fleet: FleetConfig) -> Iterator[Finding]:
    """Names of upstreams and services must be their own: by a role, strangers would get servers' requests."""
    for name in fleet.services.keys() & fleet.servers.keys():
        yield _clash(f"services.{name}", name, f"the server servers.{name}")
    for name in sorted(fleet.upstreams.keys() & (fleet.servers.keys() | fleet.services.keys())):
        yield _clash(f"upstreams.{name}", name, "a server's or a service's")
    owners = dict.fromkeys(addressable(fleet), "a server's")
    for collection, entries in (("upstreams", fleet.upstreams), ("services", fleet.services)):
        owners |= {name: f"{collection}.{name}" for name in entries if name not in owners}
    for name, entry in _others(fleet):
        collection = "upstreams" if isinstance(entry, UpstreamConfig) else "services"
        keys = {model: f"{collection}.{name}.models.{model}" for model in entry.models}
        keys |= {alias: f"{collection}.{name}.aliases.{i}" for i, alias in enumerate(getattr(entry, "aliases", ()))}
        for asked, key in keys.items():
            owner = owners.setdefault(asked, f"{collection}.{name}")
            if owner != f"{collection}.{name}":
                yield _clash(key, asked, owner)


def _clash(key: str, name: str, other: str, *fixes: Fix) -> Finding:
    return fault(
        "config/duplicate-name",
        key,
        f"{key} uses the name {name!r}, which is also {other}",
        "a server's name, its aliases and its faces must be its own; replicas share a role",
        fixes=fixes,
    )


def check_hosts(fleet: FleetConfig) -> Iterator[Finding]:
    """With several hosts, every `host` is one of them, an address, or a unix socket on the front's."""
    hosts = fleet.hardware.hosts
    servers = {f"servers.{name}.host": server.host for name, server in fleet.servers.items()}
    written = {"runtime.front.host": fleet.runtime.front.host, **servers}
    written |= {f"services.{name}.host": service.host for name, service in fleet.services.items()}
    for key, host in written.items():
        if key in servers and (is_path(host) or host.endswith(SOCKET_END)):
            yield from _unusable_path(key, host)
        else:
            yield from _unusable(key, host)
    for host in fleet.runtime.front.listen:
        yield from _unusable("runtime.front.listen", host, path=True)
    for key, host in written.items() if hosts else ():
        if host and host not in hosts and "/" not in host and host != "localhost" and not _is_address(host):
            yield dangling(key, host, "host", hosts)


def _unusable(key: str, host: str, *, path: bool = False) -> Iterator[Finding]:
    """`config/address`: nothing can listen there; a unix socket only where the front may have `path`s."""
    if re.fullmatch(r"[\w.:\[\]%-]+", host) or (path and host.startswith("/")):
        return
    notes = () if path else ("the front can listen on a unix socket: runtime.front.listen=[/run/launch/front.sock]",)
    message = f"{key} is {host!r}, which is no address to listen on"
    fixes = () if path else (Fix(override=f"{key}=127.0.0.1", effect="only this machine reaches it"),)
    yield fault("config/address", key, message, *notes, fixes=fixes)


def _unusable_path(key: str, path: str) -> Iterator[Finding]:
    """`config/address`: a path that no llama-server takes for a unix socket, or can have one at."""
    why = socket_path_fault(path)
    if why is not None:
        name = derived_name(key.removeprefix("servers.").removesuffix(".host"))[:60]
        fixes = (
            Fix(override=f"{key}=/run/launch-{name}/http{SOCKET_END}", effect="a unix socket, as a unit can have it"),
            Fix(override=f"{key}=127.0.0.1", effect="a port; only this machine reaches it"),
        )
        message = f"{key} is {path!r}, which {why}"
        yield fault("config/address", key, message, fixes=fixes)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_upstreams(fleet: FleetConfig) -> Iterator[Finding]:
    """An upstream has a URL that can be asked, and models; so has a service that takes turns."""
    for name, upstream in fleet.upstreams.items():
        yield from _unusable_url(f"upstreams.{name}.url", upstream.url)
        health = upstream.health_path
        if health is not None and not re.fullmatch(r"/[!-~]*", health):
            yield _bad_address(f"upstreams.{name}.health_path", health, "which is no path", "write /health, say")
        if not upstream.models:
            yield fault(
                "config/missing",
                f"upstreams.{name}.models",
                f"upstreams.{name} has no model that could be asked for",
                "write `models: {NAME: NAME}`: as it is asked for here, and as the upstream calls it",
            )
    for name, service in fleet.services.items():
        tier = fleet.tiers.get(service.tier)
        if service.exclusive is not None and (not service.models or (tier is not None and tier.start == "boot")):
            key = f"services.{name}.exclusive"
            why = f"tier {service.tier} keeps it up" if service.models else "nobody ever asks for it"
            note = "services take turns that have models, in a tier that is started on demand"
            fix = Fix(override=f"{key}=null", effect="it takes no turns")
            yield fault("config/conflict", key, f"{key} has it take turns, and {why}", note, fixes=(fix,))


def _unusable_url(key: str, url: str) -> Iterator[Finding]:
    """`config/address`: no http(s), no host, or parts that no server is asked with."""
    note = "as OpenAI's clients take it: https://api.example.com/v1, http://10.0.0.5:8000/v1"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", url):
        yield _bad_address(key, url, "which is no URL of a server", note)
    elif parts.query or parts.fragment or "@" in parts.netloc:
        yield _bad_address(key, url, "and has more than a server and a path: a key goes into key_file", note)


def _bad_address(key: str, written: str, why: str, note: str) -> Finding:
    """`config/address`; what may be a password is not repeated."""
    shown = re.sub(r"//[^/@]*@", "//…@", written)
    return fault("config/address", key, f"{key} is {shown!r}, {why}", note)


def check_paths(fleet: FleetConfig) -> Iterator[Finding]:
    """`config/path`: a value that begins like no file path, wherever a file is opened."""
    written = {"hardware.model_dir": fleet.hardware.model_dir}
    for name, model in fleet.models.items():
        files = model.files.items()
        written |= {f"models.{name}.files.{quantization}.path": file.path for quantization, file in files}
        if model.projector is not None:
            written[f"models.{name}.projector.path"] = model.projector.path
    for name, server in fleet.servers.items():
        written |= {f"servers.{name}.lora.{place}.path": adapter.path for place, adapter in enumerate(server.lora)}
        for field in ("chat_template_file", "slot_save_path"):
            written[f"servers.{name}.{field}"] = getattr(server, field) or ""
    for key, path in written.items():
        scheme = _SCHEME.match(path)
        hub = _HUB.match(path)
        message = f"{key} is {path!r}, which is no path of a file"
        if path.startswith("~"):
            yield fault("config/path", key, message, "~ is your own home, where there is one: write the whole path")
        elif hub or (scheme and scheme[1].lower() not in _OURS):
            there = "launch add hf:ORG/REPO[:QUANT] fetches a model" if hub else "fetch the file"
            yield fault("config/path", key, message, f"{there}; a path is where the file then lies")
