"""Which servers a name means: a server, a role, an alias, a model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from launcher.ir.config import Start
from launcher.ir.plan import ServerPlan


def all_names(servers: Iterable[ServerPlan]) -> tuple[str, ...]:
    """Every name that a request may use, sorted."""
    return tuple(sorted({name for server in servers for names in _claims(server) for name in names}))


def resolve(name: str, servers: Sequence[ServerPlan], ranks: Mapping[Start, int] | None = None) -> tuple[str, ...]:
    """Servers meant by `name`, best first: the server so named, then by role, by alias, by model.

    Within each, those with the lower rank (`ranks` by when they start: resident before on demand) and then plan order.
    """
    found: list[tuple[int, int, int, str]] = []
    for position, server in enumerate(servers):
        kind = _kind(name, server)
        if kind is not None:
            found.append((kind, (ranks or {}).get(server.starts, 0), position, server.name))
    return tuple(server for _, _, _, server in sorted(found))


def _kind(name: str, server: ServerPlan) -> int | None:
    """How directly `name` means `server`; None when it does not."""
    return next((i for i, names in enumerate(_claims(server)) if name in names), None)


def _claims(server: ServerPlan) -> tuple[tuple[str, ...], ...]:
    """Names by which a server is asked, the most direct first."""
    config = server.config
    return (server.name,), config.roles, (*config.aliases, *config.faces), (server.model.entry, config.model)
