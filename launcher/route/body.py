"""What a server's entry changes in a request's body. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.fleet import RouteTarget


def for_target(body: bytes, unit: RouteTarget) -> bytes:
    """`body` as `unit` gets it: unchanged where its entry asks for nothing."""
    defaults = unit.request_defaults
    return with_defaults(body, defaults) if defaults else body


def with_defaults(body: bytes, defaults: dict[str, object]) -> bytes:
    """`body` with the keys of `defaults` that it lacks, other values verbatim; unchanged if it is no JSON object."""
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return body
    missing = {k: v for k, v in defaults.items() if k not in given}
    return msgspec.json.encode({**given, **missing}) if missing else body
