"""Check by its `/v1/models` answer that a llama-server is the expected one. Pure."""

from __future__ import annotations

import msgspec

from launcher.base.decoding import decoded


class _Model(msgspec.Struct):
    id: str = ""
    aliases: tuple[str, ...] = ()


class _Models(msgspec.Struct):
    """The answer to `/v1/models`, which llama-server gives without an API key."""

    data: tuple[_Model, ...] = ()


def names_of(models: bytes) -> tuple[str, ...]:
    """The names in a server's `/v1/models` answer (its `--alias`); () if it is no such answer."""
    found = decoded(models, _Models) or _Models()
    return tuple(name for model in found.data for name in (model.id, *model.aliases) if name)


def wrong_server(name: str, models: bytes) -> str | None:
    """The names of the server that answers in place of `name`, in words; None if it is `name`."""
    names = tuple(dict.fromkeys(names_of(models)))
    if name in names:
        return None
    return f"it calls itself {', '.join(map(repr, names[:3]))}" if names else "it does not say who it is"
