"""The one port that clients talk to. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding, Fix
from launcher.plan.checks.planning import Planning, finding
from launcher.plan.hosts import LOOPBACK, is_loopback


def check_front(planning: Planning) -> Iterator[Finding]:
    """`route/public-without-key`: what the front itself refuses when it opens, said before anything is started."""
    front = planning.fleet.runtime.front
    if is_loopback(front.host.strip("[]")) or front.api_key_file is not None:
        return
    yield finding(
        "error",
        "route/public-without-key",
        "runtime.front.host",
        f"the front would listen on {front.host}, beyond this machine, without an API key",
        notes=("set runtime.front.api_key_file to a file with one key a line, or listen on 127.0.0.1",),
        fixes=(
            Fix(override=f"runtime.front.host={LOOPBACK}", effect="only this machine reaches it"),
            Fix(override="runtime.front.api_key_file=/etc/launch/keys", effect="a file with one key a line"),
        ),
    )
