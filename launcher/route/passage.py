"""What the head of a request means for the fast path, worked out once for all requests with the same head. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from launcher.route.keys import EVERYTHING, Grant
from launcher.route.problem import HttpError
from launcher.route.wire import Request

if TYPE_CHECKING:
    from launcher.route.asgi import RawHeaders
    from launcher.route.view import View

NO_SLOT_ENDINGS = ("/tokenize", "/detokenize", "/apply-template", "/count_tokens", "/input_tokens")
"""Requests that llama-server answers without a slot."""
_UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"origin", b"x-validation-policy"})
"""Headers that only the ASGI path deals with."""


class Passage:
    """A request head that may take the fast path: the caller is allowed in, and nothing in it is unusual.

    Clients send the same header lines with every request of a connection, the body's length apart. That is kept out
    of `headers`, so one comparison of two lists stands for parsing, guarding and sorting them again.
    """

    __slots__ = (
        "content_type",
        "grant",
        "headers",
        "is_json",
        "is_ordinary",
        "lines",
        "model",
        "path",
        "query",
        "raw_path",
        "request_id",
        "start",
        "takes_slot",
        "url",
        "view",
    )

    def __init__(self, view: View, url: bytes, headers: RawHeaders, request: Request, grant: Grant) -> None:
        """`request` is what the ASGI path would make of the same head; the checks were made. Raises HttpError."""
        self.grant = grant
        self.view = view
        self.url = url
        self.headers = headers
        self.path = request.path
        self.raw_path = request.raw_path
        self.query = request.query
        self.content_type = request.seen.get(b"content-type", b"")
        self.is_json = self.content_type[:16].lower() == b"application/json"
        self.model = view.directory.named(request.seen.get(b"x-model"), request.seen.get(b"x-task-type"))
        self.request_id = request.seen.get(b"x-request-id")
        self.takes_slot = not request.path.endswith(NO_SLOT_ENDINGS)
        self.is_ordinary = self.is_json and self.takes_slot and self.request_id is None
        """Whether later requests with this head may take the lane."""
        target = request.raw_path + b"?" + request.query if request.query else request.raw_path
        self.start = b"POST " + target + b" HTTP/1.1\r\nhost: "
        lines = b"".join(b"%b: %b\r\n" % line for line in request.forwarded)
        self.lines = b"\r\n" + lines + b"x-request-id: "

    def matches(self, view: View, url: bytes, headers: RawHeaders) -> bool:
        """Whether a head is the same one, under the same table."""
        return self.view is view and self.url == url and self.headers == headers


def passage(view: View, url: bytes, headers: RawHeaders) -> Passage | None:
    """The passage of a POST with these header lines (content-length left out); None: the ASGI path decides."""
    if any(name in _UNUSUAL for name, _ in headers):
        return None
    try:
        parsed = httptools.parse_url(url)
        raw_path = parsed.path
    except httptools.HttpParserInvalidURLError:
        return None
    if not url.startswith(b"/") or raw_path is None or b"%" in raw_path or raw_path.startswith(b"/api/"):
        return None
    scope = {
        "method": "POST",
        "path": raw_path.decode("ascii"),
        "raw_path": raw_path,
        "query_string": parsed.query or b"",
        "http_version": "1.1",
        "headers": headers,
    }
    request = Request(scope)
    try:
        request.refuse_unusable()
        view.guard.check_host(request.seen.get(b"host"), "1.1")
        grant = EVERYTHING
        if view.guard.has_keys:
            grant = view.guard.check_key(request.seen.get(b"authorization"), request.seen.get(b"x-api-key"))
            grant.check_scope("infer")
        return Passage(view, url, headers, request, grant)
    except HttpError:
        return None
