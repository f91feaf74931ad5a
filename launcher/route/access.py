"""Who may ask for what: keys and their scopes, the control API, the page. Pure."""

from __future__ import annotations

from launcher.route.guard import Guard, is_loopback
from launcher.route.head import Head
from launcher.route.keys import NOTHING, Grant
from launcher.route.problem import HttpError

_OPEN_CONTROL = frozenset(
    (method, f"{place}/{name}")
    for method in ("GET", "HEAD")
    for place in ("/api", "/v1/launch")
    for name in ("status", "openapi.json")
)
_LOCAL = ("/api/", "/v1/launch/reload")
"""Answered to this machine alone, whatever key is shown: a reload names a directory of it."""
_FOR_EVERYBODY = ("/slots", "/props", "/lora-adapters", "/models/")


def granted(head: Head, guard: Guard, *, is_open: bool, is_control: bool) -> Grant:
    """What the key of a request allows; `is_open`: anybody is answered. Raises HttpError."""
    if is_open or not guard.has_keys:
        return head.grant
    authorization, x_api_key = head.seen.get(b"authorization"), head.seen.get(b"x-api-key")
    if head.path == "/" and head.is_safe and authorization is x_api_key is None:
        return NOTHING  # the page then says how to show one: llama-server's is open, too, and programs look there first
    grant = guard.check_key(authorization, x_api_key)
    grant.check_scope("admin" if is_control or changes_server(head) else "infer")
    if grant.models is not None and head.path == "/metrics" and b"model=" not in head.query:
        grant.check_scope("admin")  # it names every server
    return grant


def changes_server(head: Head) -> bool:
    """Whether a request changes what a server is for everybody: its slots' contents, properties, adapters, models."""
    return not head.is_safe and head.path.startswith(_FOR_EVERYBODY)


def is_for_people(head: Head) -> bool:
    """Whether it is a browser's first step: the page itself, which says nothing of the fleet, and the way to it."""
    path = head.path
    if path == "/":
        return head.method == "GET" and b"text/html" in dict(head.forwarded).get(b"accept", b"")
    return (head.is_safe and (path == "/ui" or path.startswith("/ui/"))) or (
        head.method == "POST" and path == "/ui/enter"
    )


def check_control(head: Head, peer: str, *, has_keys: bool, has_session: bool = False) -> None:
    """HttpError 403 for a request to the control API that `peer`, an IP address, may not make."""
    if head.path.startswith(_LOCAL) and not is_loopback(peer):
        raise HttpError(403, "control_is_local", "the control API answers clients on this machine only")
    if has_session:
        return
    if not has_keys and (head.method, head.path) not in _OPEN_CONTROL:
        # every user and container of this machine reaches loopback: without keys it proves nothing
        message = "stop, reload and logs go through `launch`, whose socket is private; here they need an API key"
        raise HttpError(403, "control_needs_key", message)
