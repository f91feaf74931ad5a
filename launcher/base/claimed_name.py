"""Whether a llama-server is the one that is meant, by what it says of itself. Pure."""

from __future__ import annotations

import msgspec

from launcher.base.decoding import decoded


class _Model(msgspec.Struct):
    id: str = ""
    aliases: tuple[str, ...] = ()


class _Models(msgspec.Struct):
    """The answer to `/v1/models`, which no key is asked for."""

    data: tuple[_Model, ...] = ()


def names_of(models: bytes) -> tuple[str, ...]:
    """The names that a server's `/v1/models` gives (its `--alias`); none when that is no such answer."""
    found = decoded(models, _Models) or _Models()
    return tuple(name for model in found.data for name in (model.id, *model.aliases) if name)


def stranger(name: str, models: bytes) -> str | None:
    """Who answers in place of `name`, by its `/v1/models`; None when it is that server."""
    names = tuple(dict.fromkeys(names_of(models)))
    if name in names:
        return None
    return f"it calls itself {', '.join(map(repr, names[:3]))}" if names else "it does not say who it is"
