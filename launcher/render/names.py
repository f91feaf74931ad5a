"""Which servers a name means: a server, a role, an alias, a model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from launcher.ir.config import Start
from launcher.ir.plan import ServerPlan


def all_names(servers: Iterable[ServerPlan]) -> tuple[str, ...]:
    """Every name that a request may use, sorted."""
    return tuple(sorted({name for server in servers for names in _claims(server) for name in names}))


def resolve(
    name: str,
    servers: Sequence[ServerPlan],
    ranks: Mapping[Start, int] | None = None,
    speeds: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """Servers meant by `name`, best first: the server so named, then by role, by alias, by model.

    Within each, those with the lower rank (`ranks` by when they start: resident before on demand), then those that are
    expected to generate faster (`speeds` in tokens a second, where all of them are known), then plan order.
    """
    meant = [(kind, server) for server in servers if (kind := _kind(name, server)) is not None]
    known = speeds if speeds and all(server.name in speeds for _, server in meant) else {}

    def place(found: tuple[int, ServerPlan]) -> tuple[int, int, float]:
        """What is better comes first."""
        kind, server = found
        return kind, (ranks or {}).get(server.starts, 0), -known.get(server.name, 0.0)

    return tuple(server.name for _, server in sorted(meant, key=place))


def _kind(name: str, server: ServerPlan) -> int | None:
    """How directly `name` means `server`; None when it does not."""
    return next((i for i, names in enumerate(_claims(server)) if name in names), None)


def _claims(server: ServerPlan) -> tuple[tuple[str, ...], ...]:
    """Names by which a server is asked, the most direct first."""
    config = server.config
    return (server.name,), config.roles, (*config.aliases, *config.faces), (server.model.entry, config.model)
