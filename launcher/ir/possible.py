"""Whether a decoded document can be what `launch render` wrote: types are right, and so are the values. Pure.

Whoever made it: its names become files, units and addresses, and its numbers timers and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import msgspec

from launcher.base.addresses import is_path, wrong_path
from launcher.base.names import DEPLOYMENT, PROCESS, control_character
from launcher.ir.fleet import FleetManifest, RoutingTable, ServerUnit, ServiceUnit

_HIGHEST = 1 << 62
_LONGEST_S = 1e9
"""32 years: a timer beyond it overflows what the kernel counts in."""
_AT_LEAST_ONE = frozenset({"max_parallel_starts", "crash_loop_failures", "health_failures", "failures", "log_files"})
_ANYTHING = frozenset({"request_defaults", "request_set", "body"})
"""What goes to a server as JSON, and is a path, a unit or a timer nowhere."""
_ONE_LINE = frozenset({"host", "health_path", "container", "tier", "device", "builtin", "path", "exclusive"})
"""Fields whose value stands in a line of something: an address, a request, a metric."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def wrong_in_fleet(manifest: FleetManifest) -> str | None:
    """What `launch render` would never have written, with where it stands; None when there is nothing."""
    processes: list[ServerUnit | ServiceUnit] = [*manifest.servers, *manifest.services]
    names = [process.name for process in processes]
    wrong = chain(
        _deployment(manifest.deployment),
        _names("servers", (s.name for s in manifest.servers)),
        _names("services", (s.name for s in manifest.services)),
        (f"{name!r} names two processes" for name in sorted(set(names)) if names.count(name) > 1),
        (f"{s.name}: argv is empty" for s in manifest.servers if not all((s.argv, *(r.argv for r in s.rungs)))),
        (f"{s.name}: argv is empty" for s in manifest.services if not s.argv and s.builtin is None),
        _variables({p.name: p.env for p in processes}),
        _addresses((s.name, s.host, s.port) for s in manifest.servers),
        (f"{s.name}: {s.host!r} is no address" for s in manifest.services if is_path(s.host)),
        _values(manifest, "$"),
    )
    return next(wrong, None)


def wrong_in_routes(table: RoutingTable) -> str | None:
    """The same of `routes.json`."""
    targets = table.targets
    wrong = chain(
        _deployment(table.deployment),
        _names("targets", targets),
        (f"$.targets[{key!r}] is named {target.name!r}" for key, target in targets.items() if target.name != key),
        (
            f"{name!r} leads to {server!r}, which is no target - at `$.names`"
            for name, servers in table.names.items()
            for server in servers
            if server not in targets
        ),
        _addresses((target.name, target.host, target.port) for target in targets.values()),
        _values(table, "$"),
    )
    return next(wrong, None)


def _deployment(name: str) -> Iterator[str]:
    if not DEPLOYMENT.fullmatch(name):
        yield f"{name!r} cannot name a deployment - at `$.deployment`"


def _names(field: str, names: Iterable[str]) -> Iterator[str]:
    """Names that are no file's."""
    for name in names:
        if not PROCESS.fullmatch(name):
            yield f"{name!r} cannot name a file and a unit - at `$.{field}`"


def _addresses(listening: Iterable[tuple[str, str, int]]) -> Iterator[str]:
    """Unix sockets of servers (name, host, port) that none can have, or that have a port beside."""
    for name, host, port in listening:
        if is_path(host) and (why := "has a port beside it" if port else wrong_path(host)) is not None:
            yield f"{name} listens on {host[:120]!r}, which {why}"


def _variables(environments: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Names that no environment can carry."""
    for process, env in environments.items():
        for name in env:
            if not _VARIABLE.fullmatch(name):
                yield f"{name!r} cannot name a variable - in the environment of {process}"


def _values(value: Any, at: str, field: str = "") -> Iterator[str]:
    """Everything below `value`, a Struct, collection or scalar."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in _ANYTHING:
                yield from _values(getattr(value, name), f"{at}.{name}", name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _text(str(key), at, "name")
            yield from _values(item, f"{at}[{key!r}]", field)
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _values(item, f"{at}[{position}]", field)
    elif isinstance(value, str):
        yield from _text(value, at, field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, at, field)


def _text(value: str, at: str, field: str) -> Iterator[str]:
    """A text that no path, argument or line can carry."""
    if "\0" in value:
        yield f"a NUL character - at `{at}`"
    elif field in _ONE_LINE and (found := control_character(value)) is not None:
        yield f"the control character {found} - at `{at}`"


def _number(value: float, at: str, field: str) -> Iterator[str]:
    """A number that is no size, count, port or time."""
    lowest, highest = float(field in _AT_LEAST_ONE), float(_HIGHEST)
    if field == "budget_bytes":  # less than nothing where the reserve is more than there is
        lowest = -highest
    elif field == "port":
        highest = 65535
    elif field.endswith("_s"):
        highest = _LONGEST_S
    elif field == "oom_score_adjust":
        lowest, highest = -1000, 1000
    if not lowest <= value <= highest:  # NaN is neither
        yield f"{value!r:.40} is not from {lowest:g} to {highest:g} - at `{at}`"
