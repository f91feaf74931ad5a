"""Where servers, services and the front listen, and where upstreams are asked: rules of `CHECKS`. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from launcher.base.addresses import SOCKET_END, is_path, wrong_path
from launcher.base.names import derived_name
from launcher.config.names import dangling
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import FleetConfig


def check_hosts(fleet: FleetConfig) -> Iterator[Finding]:
    """Where there are several hosts, every `host` is one of them, an address, or a unix socket on the front's."""
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
    """`config/address`: what nothing can listen on; a unix socket only where the front may have `path`s."""
    if re.fullmatch(r"[\w.:\[\]%-]*", host) or (path and host.startswith("/")):
        return
    notes = () if path else ("the front can listen on a unix socket: runtime.front.listen=[/run/launch/front.sock]",)
    message = f"{key} is {host!r}, which is no address to listen on"
    fixes = () if path else (Fix(override=f"{key}=127.0.0.1", effect="only this machine reaches it"),)
    yield fault("config/address", key, message, *notes, fixes=fixes)


def _unusable_path(key: str, path: str) -> Iterator[Finding]:
    """`config/address`: a path that no llama-server takes for a unix socket, or can have one at."""
    why = wrong_path(path)
    if why is not None:
        name = derived_name(key.removeprefix("servers.").removesuffix(".host"))[:60]
        fixes = (
            Fix(override=f"{key}=/run/launch-{name}/http{SOCKET_END}", effect="a unix socket, as a unit can have it"),
            Fix(override=f"{key}=127.0.0.1", effect="a port; only this machine reaches it"),
        )
        message = f"{key} is {path!r}, which {why}"
        yield fault("config/address", key, message, fixes=fixes)


def _is_address(text: str) -> bool:
    """Whether `text` is an IP address."""
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
            message = (
                f"{key} has it take turns, and nobody ever asks for it"
                if not service.models
                else (f"{key} has it take turns, and tier {service.tier} keeps it up")
            )
            note = "services take turns that have models, in a tier that is started on demand"
            fix = Fix(override=f"{key}=null", effect="it takes no turns")
            yield fault("config/conflict", key, message, note, fixes=(fix,))


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
