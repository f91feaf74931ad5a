"""Ports, limits and devices of processes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import msgspec

from launcher.base.addresses import is_path, place, spelled
from launcher.errors import Finding, Fix
from launcher.ir.plan import ServerPlan
from launcher.ir.settings import RAM
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.sizes import gib

ANYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, never bound


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """Who listens where. `exclusive` members of one group take turns."""

    key: str
    port_key: str
    """Where its port was written: its own field, or its entry in `ports`; of a unix socket its path."""
    host: str
    port: int
    exclusive: str | None = None


def listeners(planning: Planning) -> tuple[Listener, ...]:
    """Every socket of the fleet; the front once, also where a service stands for it."""
    front = planning.fleet.runtime.front
    found = [
        Listener(
            key=s.key,
            port_key=_port_key(s),
            host=s.config.host,
            port=s.port,
            exclusive=s.config.exclusive,
        )
        for s in planning.running
        if s.port or is_path(s.config.host)
    ]
    found += [
        Listener(
            key=f"services.{s.name}",
            port_key=f"services.{s.name}.port" if s.config.port else f"ports.{s.name}",
            host=s.config.host,
            port=s.port,
        )
        for s in planning.services
        if s.port and s.config.builtin is None and s.starts != "never"
    ]
    if not planning.front:
        return tuple(found)
    paths = [host for host in front.listen if is_path(host)]
    addresses = dict.fromkeys((front.host, *(host for host in front.listen if host not in paths)))
    ports = [Listener(key="runtime.front", port_key="runtime.front.port", host=h, port=front.port) for h in addresses]
    sockets = [Listener(key="runtime.front", port_key="runtime.front.listen", host=path, port=0) for path in paths]
    return (*found, *ports, *sockets)


def _port_key(server: ServerPlan) -> str:
    """Where it is written what a server listens on."""
    if is_path(server.config.host):
        return f"{server.key}.host"
    return f"{server.key}.port" if server.config.port else f"ports.{server.name}"


def check_servers(planning: Planning) -> Iterator[Finding]:
    """`plan/no-servers`: nothing would ever be started."""
    fleet = planning.fleet
    cold = [n for n, s in fleet.servers.items() if (tier := fleet.tiers.get(s.tier)) and tier.start == "never"]
    beside = any(s.config.builtin is None and s.starts != "never" for s in planning.services)
    beside = beside or bool(planning.fleet.upstreams)
    if beside or len(cold) < len(fleet.servers):
        return
    boot = next((name for name, tier in fleet.tiers.items() if tier.start == "boot"), None)
    yield finding(
        "error",
        "plan/no-servers",
        "profile.name",
        f"the profile {fleet.profile.name} starts nothing: "
        + ("all of its servers are in tiers that never start" if cold else "it has no servers"),
        notes=()
        if cold
        else (
            "name servers in the profile's defaults list, or add one: +server=[NAME]",
            "a file of your own gets one by `launch add FILE.gguf`",
        ),
        fixes=tuple(Fix(override=f"servers.{name}.tier={boot}", effect="starts it") for name in cold[:1] if boot),
    )


def check_port_conflicts(planning: Planning) -> Iterator[Finding]:
    """`plan/port-conflict`: two processes on one address or path, said at each; or one number twice in `ports`.

    Each place is named, because the one that is wrong may be either.
    """
    clashes: defaultdict[str, list[str]] = defaultdict(list)
    found: dict[str, Listener] = {}
    by_place: defaultdict[str, list[Listener]] = defaultdict(list)
    for listener in listeners(planning):
        by_place[place(listener.host, listener.port)].append(listener)
    for one, other in (pair for same in by_place.values() for pair in combinations(same, 2)):
        same_host = one.host == other.host or {one.host, other.host} & ANYWHERE
        turns = one.exclusive is not None and one.exclusive == other.exclusive
        if same_host and not turns and one.key != other.key:
            found |= {one.key: one, other.key: other}
            clashes[one.key].append(other.key)
            clashes[other.key].append(one.key)
    for key, others in clashes.items():
        listener = found[key]
        others_said = " and ".join(dict.fromkeys(others))
        message = f"{key} listens on {spelled(listener.host, listener.port)}, and so does {others_said}"
        place_kind = "path" if is_path(listener.host) else "port"
        note = f"give one of them another {place_kind}"
        yield finding("error", "plan/port-conflict", listener.port_key, message, notes=(note,))
    names: dict[int, str] = {}
    taking_turns = {s.name: s.config.exclusive for s in planning.servers if s.config.exclusive}
    said = {found[key].port_key for key in clashes}
    for name, port in planning.fleet.ports.items():
        other_name = names.setdefault(port, name)
        shared = name in taking_turns and taking_turns.get(other_name) == taking_turns[name]
        if other_name != name and not shared and not {f"ports.{name}", f"ports.{other_name}"} <= said:
            message = f"ports gives {port} to {other_name} and to {name}"
            yield finding("error", "plan/port-conflict", f"ports.{name}", message)


def check_unused_ports(planning: Planning) -> Iterator[Finding]:
    """`plan/port-unused`: a documented port that nothing uses; a stated count of servers that is not theirs."""
    fleet = planning.fleet
    used = {listener.port for listener in listeners(planning)} | {s.port for s in planning.services}
    used |= {s.port for s in planning.servers}
    unused = {name: port for name, port in fleet.ports.items() if port not in used}
    if unused:
        listed = ", ".join(f"{port} ({name})" for name, port in sorted(unused.items(), key=lambda item: item[1]))
        key = f"ports.{next(iter(unused))}" if len(unused) == 1 else "ports"
        yield finding("note", "plan/port-unused", key, f"nothing in this deployment is started on {listed}")
    if fleet.stated is None:
        return
    source = f" ({fleet.stated.source})" if fleet.stated.source else ""
    up = {
        "servers": sum(1 for s in planning.servers if s.initial),
        "services": sum(1 for s in planning.services if s.starts == "boot"),
    }
    for what, count in up.items():
        said = getattr(fleet.stated, what)
        if said is not None and said != count:
            message = f"{said} {what} are stated{source}, {count} are up after start"
            yield finding("note", "plan/port-unused", f"stated.{what}", message)


def check_memlock(planning: Planning) -> Iterator[Finding]:
    """`plan/memlock-limit`: a process locks more than RLIMIT_MEMLOCK lets it."""
    limit = planning.fleet.hardware.memlock_bytes
    if limit is None:
        return
    for server in planning.running:
        locked = sum(part.locked for part in server.parts)
        if locked > limit:
            message = f"{gib(locked)} is to be locked, the limit (memlock) is {gib(limit)}: it would not be pinned"
            fixes = (set_field(server, "load_mode", "mmap"),)
            yield finding("warning", "plan/memlock-limit", f"{server.key}.load_mode", message, fixes=fixes)


def check_offload(planning: Planning) -> Iterator[Finding]:
    """`plan/gpu-unused-layers`: devices without layers, or layers without devices."""
    for server in planning.running:
        key = f"{server.key}.n_gpu_layers"
        asked = server.config.n_gpu_layers
        if server.settings.devices and not server.settings.n_gpu_layers:
            message = f"devices are given ({', '.join(server.settings.devices)}), but no layer is offloaded"
            yield finding(
                "warning", "plan/gpu-unused-layers", key, message, fixes=(set_field(server, "n_gpu_layers", "all"),)
            )
        elif not server.config.devices and asked not in (0, "auto"):
            message = f"n_gpu_layers={asked}, but no devices are given: the server runs on the CPU"
            yield finding(
                "warning", "plan/gpu-unused-layers", key, message, fixes=(set_field(server, "n_gpu_layers", 0),)
            )


IDLE_BYTES = 8 * 1024**3
"""RAM that a server takes at least before a card beside it is missed; a small model may well be meant for the CPU."""


def check_idle_cards(planning: Planning) -> Iterator[Finding]:
    """`plan/card-idle`: no server uses any card, and a large one says nothing of devices: it fills RAM instead."""
    cards = [d for d in planning.devices if d.kind == "gpu"]
    if not cards or any(d.peak_bytes for d in cards):
        return
    held = {s.name: memory.resident_peak_bytes for s in planning.running if (memory := s.takes(RAM))}
    plain = [s for s in planning.running if not s.config.devices and held.get(s.name, 0) >= IDLE_BYTES]
    if plain:
        largest = max(plain, key=lambda s: held[s.name])
        names = ", ".join(d.name for d in cards)
        yield finding(
            "note",
            "plan/card-idle",
            f"{largest.key}.devices",
            f"{names} idle{'s' if len(cards) == 1 else ''} while {largest.name} takes {gib(held[largest.name])} of RAM",
            fixes=(set_field(largest, "devices", "auto", "as many layers on the card as fit"),),
        )
