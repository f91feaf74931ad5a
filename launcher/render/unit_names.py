"""Names of units, and where units find what they use. Pure."""

from __future__ import annotations

import zlib

from launcher.ir.plan import FleetPlan, ServerPlan


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


def runtime_tier(plan: FleetPlan) -> str | None:
    """The tier in whose slice the runtime is: the first that starts at boot; None where there is none."""
    return next((name for name in sorted(plan.config.tiers) if plan.config.tiers[name].start == "boot"), None)


def data_dir(plan: FleetPlan) -> str:
    """Where an install puts manifest and routes of the deployment, as units write it."""
    base = "%h/.config" if plan.config.deploy.scope == "user" else "/etc"
    return f"{base}/launch/{plan.deployment}"


def runtime_unit(plan: FleetPlan) -> str:
    """`launch-DEPLOYMENT.service`: the whole runtime, and the one HTTP port."""
    return unit_name(plan, plan.deployment)


def runtime_user(plan: FleetPlan) -> str:
    """Whom the runtime runs as: `deploy.user`, else a user of its own, whose name has at most 31 bytes."""
    name = f"{plan.config.deploy.unit_prefix}-{plan.deployment}".replace(".", "_").lower()
    short = name if len(name) <= 31 else f"{name[:22]}-{zlib.crc32(name.encode()):08x}"
    return plan.config.deploy.user or short


def starts_at_boot(server: ServerPlan) -> bool:
    """Whether a boot starts it without the runtime: not a member of an exclusive group, whose turns are its alone."""
    return server.starts == "boot" and server.config.exclusive is None


def units_of(plan: FleetPlan, server: ServerPlan) -> tuple[str, ...]:
    """The unit of `server` as planned, then those of its fallbacks (`launch-NAME.rung1.service`)."""
    levels = range(1, len(plan.ladders.get(server.name, ())) + 1)
    return (unit_name(plan, server.name), *(unit_name(plan, f"{server.name}.rung{level}") for level in levels))
