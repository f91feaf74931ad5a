"""Who may ask for what: Host and Origin checks against DNS rebinding and other sites' pages, API keys and their scopes.

I/O: the key file.
"""

from __future__ import annotations

import re

from launcher.base import addresses
from launcher.errors import ConfigError
from launcher.ir.fleet import FrontUnit
from launcher.route.head import Head
from launcher.route.keys import ALLOW_ALL, ALLOW_NONE, Grant, Keys, read_keys
from launcher.route.problem import HttpError

_LOCAL_NAMES = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/?#\s]+)(?::\d{0,5})?")
_CONTROL = re.compile(r"/v1/launch/.*|/ui(?:/.*)?|/api/(?:status|stop|reload|openapi\.json|logs/.*)", re.DOTALL)
_OPEN_CONTROL = frozenset(
    (method, f"{place}/{name}")
    for method in ("GET", "HEAD")
    for place in ("/api", "/v1/launch")
    for name in ("status", "openapi.json")
)
_LOCAL = ("/api/", "/v1/launch/reload")
"""Answered to this machine alone, whatever key is shown: a reload names a directory of it."""
_FOR_EVERYBODY = ("/slots", "/props", "/lora-adapters", "/models/")
_APP_ORIGIN = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://\*")
"""Pattern for all pages of one kind of app, such as `vscode-webview://*`."""


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or the path of a unix socket, is reachable from this machine only."""
    return addresses.is_path(host) or addresses.is_loopback(host.strip("[]"))


def is_control(path: str) -> bool:
    """Whether the control API answers this path: below `/v1/launch/`, its old names below `/api/`, the page."""
    return path.startswith(("/v1/launch/", "/api/", "/ui")) and _CONTROL.fullmatch(path) is not None


def require_key_for_public(host: str, api_key_file: str | None) -> None:
    """Raise ConfigError if the front would listen beyond this machine without requiring a key."""
    if is_loopback(host) or api_key_file is not None:
        return
    raise ConfigError.of(
        "route/public-without-key",
        f"the front would listen on {host}, beyond this machine, without an API key",
        "set runtime.front.api_key_file to a file with one key a line, or listen on 127.0.0.1",
        key="runtime.front.host",
    )


class Guard:
    """The checks of one front. Raises ConfigError or HostError when it cannot be made safe."""

    def __init__(self, unit: FrontUnit, *, may_be_empty: bool = False) -> None:
        """Read the key file, once. A file without a key is refused or, with `may_be_empty`, admits nobody."""
        hosts = (unit.host, *unit.listen)
        for host in hosts:
            require_key_for_public(host, unit.api_key_file)
        self.has_keys = unit.api_key_file is not None
        """Requests must present one."""
        self._keys = Keys(()) if unit.api_key_file is None else read_keys(unit.api_key_file, may_be_empty=may_be_empty)
        allowed = {h.lower().encode() for h in unit.allowed_hosts}
        self._any_host = b"*" in allowed or (not allowed and not all(map(is_loopback, hosts)))
        origins = [o.lower() for o in unit.allowed_origins]
        self._origins = frozenset(o.encode() for o in origins)
        self._apps = tuple(o[:-1].encode() for o in origins if _APP_ORIGIN.fullmatch(o))
        self._hosts = _LOCAL_NAMES | allowed | {_bracketed(host).encode() for host in hosts}

    def check_host(self, host: bytes | None, http_version: str) -> None:
        """Raise HttpError: 403 for a Host that is not this front's, 400 where HTTP/1.1 requires one."""
        if host is None:
            if http_version == "1.0":
                return
            raise HttpError(400, "host_required", "the request has no Host header", close=True)
        if not self._any_host and host_name(host) not in self._hosts:
            raise HttpError(403, "host_not_allowed", "this front does not answer to that Host; see allowed_hosts")

    def check_origin(self, origin: bytes | None, host: bytes | None, *, same: bool = False) -> None:
        """Raise HttpError 403 for a browser page of another site; with `same`, of any other origin."""
        if origin is None or is_same_origin(origin, host):
            return
        origin = origin.lower()
        if not same and (
            host_name(origin.partition(b"://")[2]) in self._hosts
            or origin in self._origins
            or origin.startswith(self._apps)
        ):
            return
        message = "pages of that origin may not use this front; see allowed_hosts and allowed_origins"
        raise HttpError(403, "origin_not_allowed", message)

    def check_key(self, authorization: bytes | None, x_api_key: bytes | None) -> Grant:
        """What the caller may do. Raises HttpError 401 without a valid key, unless no keys are configured."""
        if not self.has_keys:
            return ALLOW_ALL
        presented = x_api_key
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            presented = authorization[7:].strip()
        elif authorization is not None and b" " not in authorization.strip():
            presented = authorization.strip()  # llama-server takes a bare key, too
        if presented is None:
            raise HttpError(401, "api_key_required", "an API key is required: Authorization: Bearer, or x-api-key")
        grant = self._keys.grant(presented)
        if grant is None:
            raise HttpError(401, "invalid_api_key", "the API key is not valid")
        return grant


def is_same_origin(origin: bytes, host: bytes | None) -> bool:
    """Whether a browser's page comes from the address that it sends its request to."""
    authority = origin.partition(b"://")[2].lower()
    return bool(authority) and host is not None and authority == host.lower()


def host_name(authority: bytes) -> bytes:
    """The host of `host[:port]` in lower case; IPv6 keeps its brackets. Empty for anything else."""
    match = _AUTHORITY.fullmatch(authority)
    return match[1].lower() if match else b""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host.lower()


def granted(head: Head, guard: Guard, *, is_open: bool, is_control: bool) -> Grant:
    """What the key of a request allows; `is_open`: anybody is answered. Raises HttpError."""
    if is_open or not guard.has_keys:
        return head.grant
    authorization, x_api_key = head.seen.get(b"authorization"), head.seen.get(b"x-api-key")
    if head.path == "/" and head.is_safe and authorization is x_api_key is None:
        return (
            ALLOW_NONE  # the page then says how to show one: llama-server's is open, too, and programs look there first
        )
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
