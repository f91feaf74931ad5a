"""Requests that their server cannot answer (images, audio, text from an embedder): rerouted or refused. Pure.

Requests that go well are not searched: only where a server has to be waited for, or has refused.
"""

from __future__ import annotations

from codecs import BOM_UTF8

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.fleet import RoutingTable
from launcher.route.problem import HttpError

_PARTS = {"image_url": "image", "input_image": "image", "image": "image", "input_audio": "audio", "audio_url": "audio"}
"""Types of content parts of OpenAI's chat and responses and Anthropic's messages."""
MEDIA = frozenset(_PARTS.values())


TEXT = "text"
"""What a server for embeddings only cannot produce."""
TEXT_KINDS = frozenset({"chat", "completion", "infill"})
"""Kinds of requests whose answer is text."""


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    content: list[_Part] | str | None = None
    """Parts of a tool's result."""


class _Message(msgspec.Struct, frozen=True):
    content: list[_Part] | str | None = None
    type: str = ""


class _Chat(msgspec.Struct, frozen=True):
    messages: list[_Message] = []
    input: list[_Message] | str | None = None


_DECODE = msgspec.json.Decoder(_Chat).decode


def media_in(body: bytes) -> frozenset[str]:
    """The media in a chat; none where the body is no readable chat."""
    try:
        chat = _DECODE(body[len(BOM_UTF8) :] if body[: len(BOM_UTF8)] == BOM_UTF8 else body)
    except UNREADABLE:
        return frozenset()
    messages = [*chat.messages, *(chat.input if isinstance(chat.input, list) else [])]
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    parts += [inner for part in parts if isinstance(part.content, list) for inner in part.content]
    return frozenset(_PARTS[part.type] for part in parts if part.type in _PARTS)


def require_text(asked: str, lacks: frozenset[str]) -> None:
    """Raise HttpError 400 `modality_not_supported` if the requested model only embeds."""
    if TEXT in lacks:
        raise HttpError(400, "modality_not_supported", f"{asked!r} makes embeddings and writes no text", param="model")


def takes_media(table: RoutingTable, asked: str, lacking: frozenset[str]) -> str:
    """The name that answers a chat with media that its model lacks. Raises HttpError 400 `modality_not_supported`.

    It is the one that the routing names; for the default name, any that takes them.
    """
    able = [name for name, unit in table.targets.items() if lacking <= set(unit.modalities)]
    named = [name for medium in sorted(lacking) if (name := table.media.get(medium)) is not None]
    for name in named:
        if set(table.names.get(name, (name,))) & set(able):
            return name
    if asked == table.default and able:
        return able[0]
    what, who = " and ".join(sorted(lacking)), f"; {', '.join(able)} can" if able else ""
    raise HttpError(400, "modality_not_supported", f"{asked!r} takes no {what}{who}", param="messages")
