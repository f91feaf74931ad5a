"""What a server's entry changes in a request's body. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.fleet import RouteTarget


def changes_bodies(unit: RouteTarget) -> bool:
    """Whether `unit`'s entry asks for a change at all."""
    return bool(unit.request_defaults or unit.request_set or unit.request_strip)


def for_target(body: bytes, unit: RouteTarget) -> bytes:
    """`body` as `unit` gets it: unchanged where its entry asks for nothing."""
    if not changes_bodies(unit):
        return body
    return filtered(body, unit.request_defaults, unit.request_set, unit.request_strip)


def filtered(body: bytes, defaults: dict[str, object], given: dict[str, object], strip: tuple[str, ...]) -> bytes:
    """`body` without the keys of `strip`, with `given` over it and `defaults` under it; other values verbatim.

    Unchanged if there is nothing to change, or it is no JSON object.
    """
    try:
        sent = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    kept = {k: v for k, v in sent.items() if k not in strip}
    missing = {k: v for k, v in defaults.items() if k not in kept}
    if not missing and not given and len(kept) == len(sent):
        return body
    return msgspec.json.encode({**kept, **missing, **given})
