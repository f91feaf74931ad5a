"""Names of units, and where units find what they use. Pure."""

from __future__ import annotations

import zlib
from collections import Counter

from launcher.ir.plan import FleetPlan, ServerPlan

FRONT = "front"
"""The front's unit is `launch-front.service`, so no server or service has this name."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    return host in ("::1", "localhost") or host.startswith("127.")


def unit_name(plan: FleetPlan, server: str, kind: str = "service") -> str:
    """`launch-NAME.service`."""
    return f"{plan.config.deploy.unit_prefix}-{server}.{kind}"


def target_name(plan: FleetPlan, tier: str) -> str:
    """`launch-TIER.target`."""
    return f"{plan.config.deploy.unit_prefix}-{tier}.target"


def slice_name(plan: FleetPlan, tier: str) -> str:
    """`launch-TIER.slice`; systemd makes it a child of `launch.slice`."""
    return f"{plan.config.deploy.unit_prefix}-{tier}.slice"


def front_tier(plan: FleetPlan) -> str | None:
    """The tier whose target starts the front: the first that starts at boot; None for none, or a front elsewhere."""
    if not plan.front:
        return None
    return next((name for name in sorted(plan.tiers) if plan.tiers[name].start == "boot"), None)


def libexec_dir(plan: FleetPlan) -> str:
    """Where an install puts `libexec/` of the deployment, as units write it."""
    base = "%h/.local/libexec" if plan.config.deploy.scope == "user" else "/usr/local/libexec"
    return f"{base}/launch/{plan.deployment}"


def data_dir(plan: FleetPlan) -> str:
    """Where an install puts manifest and routes of the deployment, as units write it."""
    base = "%h/.config" if plan.config.deploy.scope == "user" else "/etc"
    return f"{base}/launch/{plan.deployment}"


def shared_user(plan: FleetPlan, server: str) -> str:
    """The dynamic user of a server behind a socket and of its proxy; also its folder below /run. At most 31 bytes."""
    name = f"{plan.config.deploy.unit_prefix}-{server}".replace(".", "_").lower()
    return name if len(name) <= 31 else f"{name[:22]}-{zlib.crc32(name.encode()):08x}"


def turn_file(plan: FleetPlan, server: ServerPlan) -> str | None:
    """Where it is written whose turn it is among the exclusive group of `server`; None where `Conflicts=` will do.

    Members behind sockets take turns: clients start them, at any time and at once.
    """
    members = [s for s in plan.servers if s.exclusive == server.exclusive]
    if server.exclusive is None or not any(socket_path(plan, member) for member in members):
        return None
    return f"/run/launch/{plan.deployment}/{zlib.crc32(server.exclusive.encode()):08x}.turn"


def socket_path(plan: FleetPlan, server: ServerPlan) -> str | None:
    """The unix socket of a server that a connection to its port starts; None where it listens on the port itself.

    Sockets are for tiers that start on demand, on loopback, with a port that no other server has.
    """
    deploy = plan.config.deploy
    ports = Counter(s.port for s in plan.servers)
    waits = plan.tiers[server.tier].start == "demand" and server.name not in plan.config.include_warm
    if not waits or deploy.warm != "socket" or deploy.scope != "system" or ports[server.port] > 1:
        return None
    return f"/run/{shared_user(plan, server.name)}/server.sock" if is_loopback(server.host) else None
