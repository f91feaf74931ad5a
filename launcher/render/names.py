"""Which servers a name means: a server, a role, an alias, a model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.ir.plan import ServerPlan


def all_names(servers: Iterable[ServerPlan]) -> tuple[str, ...]:
    """Every name that a request may use, sorted."""
    return tuple(
        sorted({n for s in servers for n in (s.name, *s.roles, *s.aliases, s.model, f"{s.model}@{s.quantization}")})
    )


def resolve(name: str, servers: Sequence[ServerPlan], ranks: dict[str, int] | None = None) -> tuple[str, ...]:
    """Servers meant by `name`, best first: the server so named, then by role, by alias, by model.

    Within each, those with the lower rank (`ranks` by tier: resident before on demand) and then plan order.
    """
    found: list[tuple[int, int, int, str]] = []
    for position, server in enumerate(servers):
        kind = _kind(name, server)
        if kind is not None:
            found.append((kind, (ranks or {}).get(server.tier, 0), position, server.name))
    return tuple(server for _, _, _, server in sorted(found))


def _kind(name: str, server: ServerPlan) -> int | None:
    """How directly `name` means `server`; None when it does not."""
    claims = ((server.name,), server.roles, server.aliases, (f"{server.model}@{server.quantization}", server.model))
    return next((i for i, names in enumerate(claims) if name in names), None)
