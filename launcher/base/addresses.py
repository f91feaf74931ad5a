"""Where a server listens: a host and a port, or a unix socket, whose path stands for the host beside port 0. Pure."""

from __future__ import annotations

import ipaddress
import re

SOCKET_END = ".sock"
"""What llama-server takes a `--host` with this end for is the path of a unix socket."""
LONGEST_BYTES = 107
"""`sun_path` of Linux holds 108 bytes, and the last of them is 0."""
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+-]+)+")


def is_path(host: str) -> bool:
    """Whether `host` is a unix socket's: absolute."""
    return host.startswith("/")


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wrong_path(path: str) -> str | None:
    """Why no llama-server can listen on a unix socket at `path`, to follow "which"; None when one can.

    Its characters need no quotes in a shell, a unit, a URL or JSON.
    """
    if not path.startswith("/"):
        return "is no absolute path"
    if not path.endswith(SOCKET_END):
        return f"llama-server takes for a host name: a unix socket ends in {SOCKET_END}"
    if len(path.encode(errors="surrogatepass")) > LONGEST_BYTES:
        return f"is longer than the {LONGEST_BYTES} bytes that the path of a unix socket may have"
    if not _PATH.fullmatch(path):
        return "has more in it than folders of letters, digits and ._@+-"
    return None


def socket_of(host: str) -> str:
    """`host` where it is the path of a unix socket, else ""."""
    return host if is_path(host) else ""


def spelled(host: str, port: int) -> str:
    """`127.0.0.1:8080`, `[::1]:8080`, or the path."""
    if is_path(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place(host: str, port: int) -> str:
    """What of an address is its own on one machine, in words: `port 8080`, or the path."""
    return host if is_path(host) else f"port {port}"
