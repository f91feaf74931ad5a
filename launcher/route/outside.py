"""Servers with OpenAI's API outside of the fleet: which requests they get, what they see, which answers count.

Only requests that compute go there: with the fleet's key, other paths would let our clients change an account. Of a
client's header lines only those that say how to read the body are passed on, and neither its query, cookies nor keys.
I/O: reads certificates.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from launcher.base.regular import read_regular
from launcher.errors import HostError
from launcher.ir.fleet import OutsideUnit, RouteTarget
from launcher.route.body import changes_for, for_target
from launcher.route.head import Head, RawHeaders
from launcher.route.peek import model_in_form
from launcher.route.problem import HttpError
from launcher.route.upstream import UpstreamError

V1 = "/v1"
_PATH = re.compile(
    r"(/v1)?/(chat/completions|completions?|responses|messages|infill|embeddings?|rerank|reranking|"
    r"audio/(transcriptions|translations|speech)|images/(generations|edits|variations))"
)
_FORWARDED = frozenset({b"accept", b"content-type", b"anthropic-version", b"anthropic-beta", b"openai-beta"})
_DROPPED = frozenset({b"alt-svc", b"nel", b"report-to", b"set-cookie", b"strict-transport-security"})
"""Header lines about its host, not about the answer."""
_AGAIN_S = 5.0
"""Retry-After in seconds, if a busy one does not say."""
_AGAIN_MAX_S = 3600.0


class Outside:
    """One such server. Raises HostError for a certificate file that cannot be used."""

    __slots__ = ("authority", "base", "health", "name", "root", "tls")

    def __init__(self, name: str, unit: OutsideUnit) -> None:
        parts = urlsplit(unit.url)
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        self.name = name
        self.authority = (f"{shown}:{parts.port}" if parts.port else shown).encode()
        self.base = parts.path.rstrip("/") or V1
        self.root = self.base.removesuffix(V1) if self.base.endswith(V1) else None
        self.health = unit.health_path.encode()
        self.tls = _tls(name, unit.ca_file) if parts.scheme == "https" else None

    def refusal(self, head: Head) -> HttpError | None:
        """Why it cannot be asked this; None where it can."""
        if head.kind and _PATH.fullmatch(head.path) and (self.root is not None or head.path.startswith(V1 + "/")):
            return None
        message = f"{self.name!r} is not run by this fleet, and is only asked to compute: not for {head.path[:100]}"
        return HttpError(404, "not_offered", message)

    def head_for(self, head: Head, request_id: bytes, own: bytes, body_bytes: int) -> bytes:
        """The request head to send, with the blank line; `own`: the header line with the fleet's key."""
        is_v1 = head.path.startswith(V1 + "/")
        path = self.base + head.path.removeprefix(V1) if is_v1 else (self.root or "") + head.path
        lines = b"".join(b"%b: %b\r\n" % line for line in head.forwarded if line[0] in _FORWARDED)
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            *(head.method.encode(), path.encode(), self.authority, lines, request_id, own, body_bytes),
        )

    def wrong_answer(self, status: int, came: RawHeaders) -> UpstreamError | None:
        """The error for what is no answer for a client: key refused, busy, a redirect, or an HTML page."""
        if status in (401, 403):
            message = f"{self.name!r} does not take the key that this fleet has for it (status {status})"
            return UpstreamError("refused", message, HttpError(502, "upstream_key_refused", message))
        if status in (429, 502, 503, 504, 529):
            message = f"{self.name!r} answers {status}: it does not serve this fleet now"
            lines = dict(came)
            after_s = _AGAIN_S
            with contextlib.suppress(ValueError):
                after_s = min(_AGAIN_MAX_S, max(0.0, float(lines.get(b"retry-after", b""))))
            shown = 429 if status == 429 else 503
            return UpstreamError("refused", message, HttpError(shown, "upstream_busy", message, retry_after_s=after_s))
        kind = next((value[:9].lower() for name, value in came if name == b"content-type"), b"")
        if 300 <= status < 400 or kind == b"text/html":
            what = "leads elsewhere" if status < 400 and kind != b"text/html" else "is a page for people"
            return UpstreamError("garbage", f"its answer (status {status}) {what}: is its url the API's?")
        return None

    def refuses_us(self, status: int) -> bool:
        """Whether an answer to a health check means that it is not healthy, or refuses our key."""
        return status >= 500 or status in (401, 403)


def answer_lines(came: RawHeaders) -> RawHeaders:
    """The header lines that are about the answer."""
    return [line for line in came if line[0] not in _DROPPED]


def body_for(body: bytes, unit: RouteTarget, asked: str, content_type: bytes) -> bytes:
    """`body` with the server's own name of the model; `asked`: the name asked for. Raises HttpError."""
    if not is_form(content_type):
        return for_target(body or b"{}", unit, asked)
    model = changes_for(unit, asked)[1].get("model", "")
    return model_in_form(body, content_type, str(model).encode())


def is_form(content_type: bytes) -> bool:
    """Whether a body is a multipart form: files, and fields beside them."""
    return content_type[:19].lower() == b"multipart/form-data"


def _tls(name: str, ca_file: str | None) -> ssl.SSLContext:
    """The TLS context that checks its certificate. Raises HostError."""
    try:
        if ca_file is not None and Path(ca_file).exists():
            read_regular(Path(ca_file))  # OpenSSL would wait for whoever writes into a pipe
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        message = f"{name!r}: the certificates in {ca_file} cannot be used: {error}"
        raise HostError.of("route/ca-file", message, key=f"upstreams.{name}.ca_file") from None
