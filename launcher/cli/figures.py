"""What the front of an installed fleet counts: its servers' slots taken, and requests that wait."""

from __future__ import annotations

import http.client
import re
from contextlib import closing

import msgspec

from launcher.cli.ask import plain_key
from launcher.install import Installed
from launcher.ir.fleet import FrontUnit
from launcher.ir.live import FleetStatus

_FIGURE = re.compile(r'^launch_requests_(in_flight|queued)\{server="([^"]+)"\} (\d+)$', re.MULTILINE)
_WAIT_S = 1.0


def with_figures(installed: Installed, status: FleetStatus) -> FleetStatus:
    """`status` with the figures of the front; as it is where the front does not run, or cannot be asked."""
    if installed.routes is None or status.front is None:
        return status
    found: dict[str, dict[str, int]] = {}
    for name, server, number in _FIGURE.findall(_metrics(installed.routes.front)):
        found.setdefault(server, {})[name] = int(number)
    processes = tuple(msgspec.structs.replace(p, **found.get(p.name, {})) for p in status.processes)
    return msgspec.structs.replace(status, processes=processes)


def _metrics(front: FrontUnit) -> str:
    """The page of its figures; empty where it gives none: under TLS, or with keys of which we may read none."""
    key = plain_key(front.api_key_file, "") if front.api_key_file else None
    if front.tls_cert_file or (front.api_key_file and key is None):
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(front.host, front.host)  # noqa: S104 - asked, not bound
    try:
        with closing(http.client.HTTPConnection(host, front.port, timeout=_WAIT_S)) as line:
            line.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = line.getresponse()
            return answer.read().decode() if answer.status == http.HTTPStatus.OK else ""
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: a key that no header can carry
        return ""
