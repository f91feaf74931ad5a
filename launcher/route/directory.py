"""Names → servers: what a request's model means, its fallbacks, its timeout. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.errors import ConfigError, Finding
from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.route.endpoint import Kind
from launcher.route.problem import HttpError

_SHOWN_NAME = 100
"""Characters of an unknown name shown in an error."""
_SHOWN_NAMES = 40


class Directory:
    """A routing table prepared for look-ups. Raises ConfigError when a name leads to no server."""

    def __init__(self, table: RoutingTable) -> None:
        """Compute every name's tiers once."""
        self.table = table
        findings = tuple(_dangling(table))
        if findings:
            raise ConfigError(findings)
        self._tiers = {name: tuple(_tiers(table, name)) for name in (*table.names, *table.targets)}
        for pool in table.pools:
            self._tiers.setdefault(pool.name, (pool.servers,))
        self._tasks: dict[str, str] = {}
        for pool in table.pools:
            for task_type in pool.task_types:
                self._tasks.setdefault(task_type, pool.name)

    def __contains__(self, name: str) -> bool:
        """Whether `name` leads to a server."""
        return name in self._tiers

    def asked(self, model: str | None, kind: Kind | None = None) -> str:
        """The name that a request is for: its own, else the default of its kind, else the table's.

        An unknown name counts as none where the table says so (`kind` None: never). Raises HttpError 404
        `model_not_found` with the nearest names, 400 `model_required`.
        """
        table = self.table
        default = table.defaults.get(kind or "", table.default)
        if model is not None:
            if model in self._tiers:
                return model
            if kind is not None and table.unknown_model == "default" and default is not None:
                return default
            raise self._unknown(model)
        if default is None:
            raise HttpError(400, "model_required", "the request names no model, and there is no default", param="model")
        return default

    def named(self, x_model: bytes | None, x_task_type: bytes | None) -> bytes | None:
        """The name that the headers give: `x-model`, else the pool that serves `x-task-type`.

        Raises HttpError 400 `unknown_task_type`.
        """
        if x_model or not x_task_type:
            return x_model
        task_type = x_task_type.decode("latin-1").strip()
        if task_type not in self._tasks:
            known = ", ".join(sorted(self._tasks)) or "none"
            message = f"no pool serves the task type {task_type[:_SHOWN_NAME]!r}; known are {known}"
            raise HttpError(400, "unknown_task_type", message)
        return self._tasks[task_type].encode()

    def tiers(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Servers of a known name: its own first, then its fallbacks', nearest first; no server twice."""
        return self._tiers[name]

    def timeout_s(self, name: str, target: RouteTarget) -> float:
        """Longest silence of `target` in seconds: by the role asked for, by its first role, or its own."""
        by_role = self.table.timeouts_s
        for key in (name, *target.roles):
            if key in by_role:
                return by_role[key]
        return target.request_timeout_s

    def names(self) -> list[str]:
        """Every name that a request may use, sorted."""
        return sorted(self._tiers)

    def _unknown(self, model: str) -> HttpError:
        import difflib  # noqa: PLC0415  # late: 0.2 MiB for who never asks wrongly

        shown = model if len(model) <= _SHOWN_NAME else model[:_SHOWN_NAME] + "…"
        near = difflib.get_close_matches(model[:_SHOWN_NAME], self._tiers, n=3)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
        known = self.names()
        more = f", and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else ""
        message = f"model {shown!r} does not exist: {hint}known are {', '.join(known[:_SHOWN_NAMES])}{more}"
        return HttpError(404, "model_not_found", message, param="model")


def _tiers(table: RoutingTable, name: str) -> Iterable[tuple[str, ...]]:
    """The servers of `name`, then of its fallbacks breadth first; no server twice."""
    seen: set[str] = set()
    queue = [name]
    queued = {name}
    while queue:
        here = queue.pop(0)
        servers = tuple(s for s in _servers(table, here) if s not in seen)
        seen.update(servers)
        if servers:
            yield servers
        roles = (role for s in servers for role in table.targets[s].roles)
        for key in (here, *servers, *roles):
            new = [n for n in table.fallback.get(key, ()) if n not in queued]
            queue += new
            queued.update(new)


def _servers(table: RoutingTable, name: str) -> tuple[str, ...]:
    return table.names.get(name, (name,))


def _dangling(table: RoutingTable) -> Iterable[Finding]:
    """Names, fallbacks and defaults that lead to no server of the table."""
    groups = {f"names.{name}": servers for name, servers in table.names.items()}
    groups |= {f"pools.{pool.name}": pool.servers for pool in table.pools}
    for key, servers in groups.items():
        for server in servers:
            if server not in table.targets:
                yield _finding(key, server)
    for name, others in table.fallback.items():
        for other in others:
            if other not in table.names and other not in table.targets:
                yield _finding(f"fallback.{name}", other)
    defaults = {"default": table.default}
    defaults |= {f"defaults.{kind}": name for kind, name in table.defaults.items()}
    defaults |= {f"media.{medium}": name for medium, name in table.media.items()}
    for key, default in defaults.items():
        if default is not None and default not in table.names and default not in table.targets:
            yield _finding(key, default)


def _finding(key: str, name: str) -> Finding:
    message = f"{name!r} is no server of the routing table: render the deployment again"
    return Finding(code="route/dangling-name", severity="error", key=key, message=message)
