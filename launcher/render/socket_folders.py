"""The folders in which units have the unix sockets of servers: below /run, made and removed by systemd. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.base.addresses import SOCKET_END, is_path
from launcher.errors import Finding, Fix
from launcher.ir.plan import FleetPlan, ServerPlan

_OF_THE_MACHINE = re.compile(r"/run/([^/]+)/[^/]+")
_OF_A_USER = re.compile(r"/run/user/\d+/([^/]+)/[^/]+")


def socket_folder(path: str, *, scope: str, prefix: str) -> str | None:
    """The name of the folder of `path` below /run, or below a user's own there; None where it is none for a unit.

    systemd gives such a folder to the unit and removes it with all that is in it: it has to be the fleet's own, whose
    name begins with `prefix`.
    """
    found = (_OF_A_USER if scope == "user" else _OF_THE_MACHINE).fullmatch(path)
    return found[1] if found is not None and found[1].startswith(f"{prefix}-") else None


def own_folder(server: ServerPlan, plan: FleetPlan) -> str | None:
    """The folder that the unit of `server` has made for its unix socket; None where it has none, or cannot."""
    if not is_path(server.config.host):
        return None
    deploy = plan.config.deploy
    folder = socket_folder(server.config.host, scope=deploy.scope, prefix=deploy.unit_prefix)
    return None if folder is None or any(_sharing(server, folder, plan)) else folder


def without_folder(server: ServerPlan, plan: FleetPlan) -> Iterator[Finding]:
    """`render/socket-folder`: the unit of `server` has no folder for its unix socket."""
    if not is_path(server.config.host) or own_folder(server, plan) is not None:
        return
    deploy, path = plan.config.deploy, server.config.host
    folder = socket_folder(path, scope=deploy.scope, prefix=deploy.unit_prefix)
    base = "/run/user/UID" if deploy.scope == "user" else "/run"
    if folder is None:
        message = f"no unit makes a folder for {path}: that is {base}/{deploy.unit_prefix}-…/NAME{SOCKET_END}"
    else:
        others = " and ".join(dict.fromkeys(_sharing(server, folder, plan)))
        message = f"{base}/{folder} is also the folder of {others}: who stops first removes it"
    key = f"servers.{server.name}.host"
    own = f"{base}/{deploy.unit_prefix}-{server.name}/http{SOCKET_END}"
    fixes = (Fix(override=f"{key}={own}", effect="a folder of its own"),) if deploy.scope == "system" else ()
    notes = ("`launch up` does without; `launch install` refuses such a unit",)
    yield Finding(code="render/socket-folder", severity="warning", key=key, message=message, notes=notes, fixes=fixes)


def _sharing(server: ServerPlan, folder: str, plan: FleetPlan) -> Iterator[str]:
    """Who else has a unix socket in `folder`, and does not take turns with `server`."""
    deploy = plan.config.deploy
    for other in plan.servers:
        turns = server.config.exclusive is not None and server.config.exclusive == other.config.exclusive
        there = socket_folder(other.config.host, scope=deploy.scope, prefix=deploy.unit_prefix) == folder
        if there and other.name != server.name and other.starts != "never" and not turns:
            yield other.name
    for path in plan.config.runtime.front.listen:
        if socket_folder(path, scope=deploy.scope, prefix=deploy.unit_prefix) == folder:
            yield "the front"
