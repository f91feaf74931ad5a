"""Addresses of servers: host and port, or the path of a unix socket as host, with port 0. Pure."""

from __future__ import annotations

import ipaddress
import re

SOCKET_END = ".sock"
"""llama-server takes a `--host` that ends so for the path of a unix socket."""
SOCKET_PATH_MAX_BYTES = 107
"""Linux's `sun_path` holds 108 bytes, the last of which is 0."""
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+-]+)+")


def is_path(host: str) -> bool:
    """Whether `host` is the (absolute) path of a unix socket."""
    return host.startswith("/")


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def socket_path_fault(path: str) -> str | None:
    """Why no llama-server can listen on a unix socket at `path`, as words to follow "which"; None if one can.

    Only characters that need no quoting in a shell, a unit, a URL or JSON are allowed.
    """
    if not path.startswith("/"):
        return "is no absolute path"
    if not path.endswith(SOCKET_END):
        return f"llama-server takes for a host name: a unix socket ends in {SOCKET_END}"
    if len(path.encode(errors="surrogatepass")) > SOCKET_PATH_MAX_BYTES:
        return f"is longer than the {SOCKET_PATH_MAX_BYTES} bytes that the path of a unix socket may have"
    if not _PATH.fullmatch(path):
        return "has more in it than folders of letters, digits and ._@+-"
    return None


def socket_path(host: str) -> str:
    """`host` if it is the path of a unix socket, else ""."""
    return host if is_path(host) else ""


def address_text(host: str, port: int) -> str:
    """The address as text: `127.0.0.1:8080`, `[::1]:8080`, or the path."""
    if is_path(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_or_path(host: str, port: int) -> str:
    """The part of an address that only one server of a machine can have, in words: `port 8080`, or the path."""
    return host if is_path(host) else f"port {port}"
