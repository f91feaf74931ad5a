"""What a server's entry changes in a request's body. Pure."""

from __future__ import annotations

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.fleet import RouteTarget
from launcher.route.peek import BOM
from launcher.route.problem import HttpError

BIG_BYTES = 512 * 1024
"""Bodies beyond this are read by another process (`launcher.route.body_reader`); smaller ones take at most 5 ms here.
They are no `bytes` but the `bytearray` that their parts were added to: copying 64 MB takes 50 ms in which nobody is
served."""


def changes_bodies(unit: RouteTarget) -> bool:
    """Whether the entry asks for any change."""
    return bool(unit.request_defaults or unit.request_set or unit.request_strip or unit.faces)


def for_target(body: bytes, unit: RouteTarget, asked: str = "") -> bytes:
    """`body` as `unit` gets it when asked by the name `asked`: unchanged where its entry asks for nothing.

    Raises HttpError 400 for a body that cannot be changed where something must be set or taken out.
    """
    if not changes_bodies(unit) or not body:
        return body
    return filtered(body, *changes_for(unit, asked))


def changes_for(unit: RouteTarget, asked: str) -> tuple[dict[str, object], dict[str, object], tuple[str, ...]]:
    """Keys that are added, set and taken out for requests to `unit` by the name `asked`."""
    face = unit.faces.get(asked)
    if face is None:
        return unit.request_defaults, unit.request_set, unit.request_strip
    return (
        unit.request_defaults | face.request_defaults,
        unit.request_set | face.request_set,
        (*unit.request_strip, *face.request_strip),
    )


def filtered(body: bytes, defaults: dict[str, object], given: dict[str, object], strip: tuple[str, ...]) -> bytes:
    """`body` without the keys of `strip`, with `given` over it and `defaults` under it; other values verbatim.

    Unchanged if there is nothing to change. Raises HttpError 400 for what is no JSON object but llama-server may still
    read as one (a byte order mark, deep nesting, a form), unless there are only defaults.
    """
    try:
        sent = msgspec.json.decode(body.removeprefix(BOM), type=dict[str, msgspec.Raw])
    except UNREADABLE:
        if not given and not strip:
            return body
        message = "this server takes plain JSON objects only: some keys of a request are set or taken out"
        raise HttpError(400, "invalid_json", message) from None
    kept = {k: v for k, v in sent.items() if k not in strip}
    missing = {k: v for k, v in defaults.items() if k not in kept}
    if not missing and not given and len(kept) == len(sent):
        return body
    return msgspec.json.encode({**kept, **missing, **given})
