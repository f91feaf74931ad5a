"""What the names in a fleet stand for: servers, their roles and their aliases. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from launcher.base.names import TAKEN_PREFIXES, derived_name
from launcher.config.nearest import listing, nearest, set_to
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import FleetConfig, ServiceConfig, UpstreamConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
    severity: str = "error",
) -> Finding:
    """The `config/dangling` finding for `name` at `key`, which no `kind` in `names` has.

    `fixes` replace the one made here, which writes the nearest name at `key`.
    """
    known = sorted(names)
    near = nearest(name, known)
    if fixes is None:
        fixes = () if near is None else (set_to(key, near, "the nearest name"),)
    notes = (f"did you mean {near}?",) if near else ()
    return fault(
        "config/dangling",
        key,
        f"{key} names the {kind} {name!r}, which does not exist",
        *notes,
        listing(f"{kind}s", known),
        fixes=fixes,
        severity="warning" if severity == "warning" else "error",
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
                yield fault(
                    "config/bad-name",
                    f"{collection}.{name}",
                    f"{name!r} cannot be the name of one of the {collection}",
                    *_how_to_name(collection, name, fleet),
                )
    parts = (
        ("hardware.name", fleet.hardware.name, "a part of the deployment's name, which names a directory"),
        ("profile.name", fleet.profile.name, "a part of the deployment's name, which names a directory"),
        ("deploy.unit_prefix", fleet.deploy.unit_prefix, "what the names of units begin with"),
    )
    for key, name, what in parts:
        if not _PART.fullmatch(name):
            yield fault(
                "config/bad-name",
                key,
                f"{name!r} cannot be {what}",
                "use letters, digits and . _ + = -, starting with a letter, a digit or _, 100 at most",
            )
    user = fleet.deploy.user
    if user is not None and not _USER.fullmatch(user):
        yield fault(
            "config/bad-name",
            "deploy.user",
            f"{user!r} cannot be a user's name",
            "use letters, digits, _ and -, starting with a letter or _, 31 at most; or leave it out",
        )
    prefix = fleet.deploy.unit_prefix
    if prefix.partition("-")[0] in TAKEN_PREFIXES:
        yield fault(
            "config/bad-name",
            "deploy.unit_prefix",
            f"units that begin with {prefix!r} are systemd's own",
            fixes=(set_to("deploy.unit_prefix", "launch", "what it is without being said"),),
        )


def _how_to_name(collection: str, name: str, fleet: FleetConfig) -> tuple[str, ...]:
    """What would do; of a server also why its derived name did not."""
    plain = "use letters, digits, - and _, starting with a letter or digit"
    if collection != "servers":
        return (plain,)
    taken = derived_name(name)
    why = (f"its unit would be named {taken}, as another's",) if taken in fleet.servers else ()
    return (f"{plain}; or a model id (org/model:q4)", *why)


def check_variables(fleet: FleetConfig) -> Iterator[Finding]:
    """Environment variables have names that a process and systemd take."""
    for collection, entries in (("servers", fleet.servers), ("services", fleet.services), ("engines", fleet.engines)):
        for name, entry in entries.items():
            for variable in entry.env:
                if not _VARIABLE.fullmatch(variable):
                    yield fault(
                        "config/bad-name",
                        f"{collection}.{name}.env.{variable}",
                        f"{variable!r} cannot be the name of an environment variable",
                        "use letters, digits and _, not first a digit",
                    )


def check_duplicate_names(fleet: FleetConfig) -> Iterator[Finding]:
    """A name must lead to one server; only a role may be shared, by replicas."""
    for name in fleet.services.keys() & fleet.servers.keys():
        yield _clash(f"services.{name}", name, f"the server servers.{name}")
    for name in sorted(fleet.upstreams.keys() & (fleet.servers.keys() | fleet.services.keys())):
        yield _clash(f"upstreams.{name}", name, "a server's or a service's")
    yield from _other_clashes(fleet)
    owners: dict[str, str] = {}
    for server_name, server in fleet.servers.items():
        for i, alias in enumerate(server.aliases):
            yield from _alias_clash(fleet, server_name, i, owners.get(alias))
            owners.setdefault(alias, f"servers.{server_name}")
        yield from _face_clashes(fleet, server_name, owners)
        for i, role in enumerate(server.roles):
            namesake = fleet.servers.get(role)
            if role != server_name and namesake is not None and role not in namesake.roles:
                yield _clash(f"servers.{server_name}.roles.{i}", role, f"the server servers.{role}")


def _alias_clash(fleet: FleetConfig, server_name: str, at: int, owner: str | None) -> Iterator[Finding]:
    """An alias of a server, or its id, is its own: no server's, no role of another, and not `owner`'s."""
    server = fleet.servers[server_name]
    alias, key = server.aliases[at], f"servers.{server_name}.aliases.{at}"
    left = [a for a in server.aliases if a != alias]
    drop = set_to(f"servers.{server_name}.aliases", left, f"leaves {alias} to the other")
    if alias == server.id:
        key = f"servers.{server_name}.id"
        drop = Fix(override=f"{key}=null", effect=f"leaves {alias} to the other")
    if alias in fleet.servers and alias != server_name:
        yield _clash(key, alias, f"the server servers.{alias}", drop)
    elif owner is not None:
        yield _clash(key, alias, f"an alias or a face of {owner}", drop)
    else:
        others = [n for n, s in fleet.servers.items() if n != server_name and alias in s.roles]
        if others:
            yield _clash(key, alias, f"a role of servers.{others[0]}", drop)


def _other_clashes(fleet: FleetConfig) -> Iterator[Finding]:
    """What an upstream or a service is asked by is its own: asked by a role, strangers would get what servers do."""
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


def _face_clashes(fleet: FleetConfig, server_name: str, owners: dict[str, str]) -> Iterator[Finding]:
    """A face's name is its own: no server's, alias's, role's or other face's; `owners` are those seen so far."""
    for face in fleet.servers[server_name].faces:
        key = f"servers.{server_name}.faces.{face}"
        if face in fleet.servers:
            yield _clash(key, face, f"the server servers.{face}")
        elif face in owners:
            yield _clash(key, face, f"an alias or a face of {owners[face]}")
        elif others := [n for n, s in fleet.servers.items() if face in s.roles]:
            yield _clash(key, face, f"a role of servers.{others[0]}")
        owners.setdefault(face, f"servers.{server_name}")


def _clash(key: str, name: str, other: str, *fixes: Fix) -> Finding:
    """A `config/duplicate-name` error."""
    return fault(
        "config/duplicate-name",
        key,
        f"{key} uses the name {name!r}, which is also {other}",
        "a server's name, its aliases and its faces must be its own; replicas share a role",
        fixes=fixes,
    )
